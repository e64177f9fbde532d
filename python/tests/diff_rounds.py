#!/usr/bin/env python3
"""Random runs, each foretold by --dry-run --diff --json, and all taken back by the rename table.

  python python/tests/diff_rounds.py --rounds 300             half a minute
  python python/tests/diff_rounds.py --rounds 50 --seed 7

Before each run a dry one lists who would be new, renamed and missing; a comparison of the dimension before
and after the run must find the same. At the end the rename table, replayed backwards from the last state,
must give the names of every earlier one. Stops at the first difference, with exit code 1.
"""

from __future__ import annotations

import argparse
import random
import sys
import uuid
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

ATHLETES = [str(uuid.uuid5(uuid.NAMESPACE_URL, str(number))) for number in range(90)]  # few, so that no list is cut
HOSTILE = ["", " ", "NULL", "\\N", "\\.", "a\nb", "a\tb", "a\rb", "\x1b[2J\x1b[31mred", "\u202egnirts", "\u2066x\u2069",
           "Ann -> Bob", '"quoted"', "it's", "100 % sure", "{braces}", "\u05d0\u05d1", "\U0001f468\u200d\U0001f469",
           "nan", "e\u0301", "\u00e9", "x" * 5000, "back\\slash", "trailing ", "\u0085", "\u2028", "\x7f", "\x01"]

# What happens in the app to some of its rows. In capitals a uuid is the same athlete's.
CHANGES = [
    "INSERT INTO {t} (uuid, name) SELECT one, %(name)s FROM unnest(%(any)s::text[]) AS one ON CONFLICT DO NOTHING",
    "UPDATE {t} SET name = %(name)s WHERE uuid = ANY (%(some)s::text[])",
    "UPDATE {t} AS a SET name = b.name FROM {t} AS b"
    " WHERE a.uuid = ANY (%(some)s::text[]) AND b.uuid = ANY (%(some)s::text[]) AND a.uuid <> b.uuid",
    "INSERT INTO {t} (uuid, name) SELECT upper(uuid), name FROM {t} WHERE uuid = ANY (%(some)s::text[])"
    " ON CONFLICT DO NOTHING",
    "INSERT INTO {t} (uuid, name) SELECT upper(one), %(name)s FROM unnest(%(some)s::text[]) AS one"
    " ON CONFLICT DO NOTHING",
    "DELETE FROM {t} WHERE uuid <> lower(uuid)",
    "UPDATE {t} SET name = NULL WHERE uuid = ANY (%(some)s::text[])",
    "DELETE FROM {t} WHERE uuid = ANY (%(some)s::text[])",
]
HOW_OFTEN = [4, 4, 2, 1, 1, 3, 1, 1]


class Rounds:
    def __init__(self, world, chance):
        self.world, self.chance = world, chance
        self.states, self.incremental = [(None, world.dimension())], 0

    def change(self, statement):
        here = sorted(found for found, in self.world.app.sql('SELECT uuid FROM public."User"'))
        some = self.chance.sample(here, min(len(here), 4))
        name = self.chance.choice(HOSTILE if self.chance.random() < 0.4 else ["Athlete %d" % n for n in range(50)])
        with self.world.app.connection.cursor() as cursor:
            cursor.execute(statement.format(t='public."User"'), {
                "name": name, "any": self.chance.sample(ATHLETES, 6), "some": some})

    def round(self):
        for statement in self.chance.choices(CHANGES, HOW_OFTEN, k=self.chance.randint(0, 4)) + CHANGES[:1]:
            self.change(statement)
        flags = ["--diff", "--allow-changes", "1000"] + ["--incremental"] * (self.chance.random() < 0.5)
        before, refresh = self.world.dimension(), self.chance.choice(["always", "12h", "never"])
        dry = self.world.sync("--dry-run", *flags, SYNC_REFRESH=refresh)
        assert dry.code == 0 and self.world.dimension() == before, dry
        real, after = self.world.sync(*flags, SYNC_REFRESH=refresh), self.world.dimension()
        assert real.code == 0 and real.result["changes"] == dry.result["changes"], (dry, real)
        self.compare(dry.result, before, after)
        self.states.append((self.world.history()[-1]["run_id"], after))

    def compare(self, result, before, after):
        here = {found.lower() for found, in self.world.app.sql('SELECT uuid FROM public."User"')}
        renamed = [(one, before[one], after[one]) for one in sorted(before) if before[one] != after[one]]
        found = {"inserted": [(one, None, after[one]) for one in sorted(set(after) - set(before))], "updated": renamed,
                 "missing": [(one, before[one], None) for one in sorted(set(before) - here)]}
        if result["mode"] == "incremental":
            self.incremental, found["missing"] = self.incremental + 1, None
        not_listed = result["changes"].pop("not_listed")
        assert not_listed == {kind: None if found[kind] is None else 0 for kind in found}
        assert found == {kind: said and [(c["uuid"], c["old_name"], c["new_name"]) for c in said]
                         for kind, said in result["changes"].items()}, result
        assert [row[1:] for row in self.world.renames() if row[0] == self.world.history()[-1]["run_id"]] == renamed

    def replay_backwards(self):
        """From the last state's names to the first's, by the rename table alone."""
        state, overwritten = dict(self.states[-1][1]), self.world.renames()
        for (run_id, _), (_, earlier) in zip(self.states[:0:-1], self.states[-2::-1]):
            state.update({row[1]: row[2] for row in overwritten if row[0] == run_id})
            assert {one: state[one] for one in earlier} == earlier


def play(world, seed, rounds):
    """Returns how many names were overwritten and how many runs were incremental: none would prove nothing."""
    with world.app.changed('CREATE UNIQUE INDEX one_athlete ON public."User" (uuid)', "DROP INDEX public.one_athlete"):
        table = Rounds(world, random.Random(seed))
        for _ in range(rounds):
            table.round()
    table.replay_backwards()
    return len(world.renames()), table.incremental


def main():
    import conftest
    from lab import servers
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--seed", type=int, default=random.randrange(10 ** 6))
    options = parser.parse_args()
    with servers.two_servers(fsync="off", autovacuum="off", wal_writer_delay="1ms") as lab:
        lab.set_up()
        with conftest.empty_world(lab, conftest.load_script()) as world:
            print("seed=%d" % options.seed, flush=True)
            print("renamed=%d incremental=%d differences=0" % play(world, options.seed, options.rounds))


if __name__ == "__main__":
    main()
