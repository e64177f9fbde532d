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

ATHLETES = 90  # so that no list is cut
HOSTILE = ["", " ", "NULL", "\\N", "\\.", "a\nb", "a\tb", "a\rb", "\x1b[2J\x1b[31mred", "\u202egnirts", "\u2066x\u2069",
           "Ann -> Bob", '"quoted"', "it's", "100 % sure", "{braces}", "\u05d0\u05d1\u05d2", "\U0001f468\u200d\U0001f469",
           "e\u0301", "\u00e9", "x" * 5000, "back\\slash", "trailing ", "\u0085", "\u2028", "\x7f", "nan", "\x01"]


class Rounds:
    def __init__(self, world, chance):
        self.world, self.chance = world, chance
        self.states = [(None, world.dimension())]
        self.incremental, self.ever = 0, []

    def sql(self, statement, *values):
        return self.world.app.sql(statement, *values)

    def name(self):
        if self.chance.random() < 0.4:
            return self.chance.choice(HOSTILE)
        return "Athlete %d" % self.chance.randrange(50)

    def pick(self, most):
        found = [row[0] for row in self.sql('SELECT DISTINCT uuid FROM public."User" ORDER BY 1')]
        return self.chance.sample(found, min(len(found), self.chance.randint(1, most)))

    # What happens in the app

    def insert(self):
        """New ones while there is room, then some who had left."""
        known = {found.lower() for found, in self.sql('SELECT uuid FROM public."User"')}
        for _ in range(self.chance.randint(1, 8)):
            one = str(uuid.UUID(int=self.chance.getrandbits(128)))
            if len(self.ever) >= ATHLETES:
                one = self.chance.choice(self.ever)
            if one not in known:
                known.add(one)
                self.ever += [one] * (one not in self.ever)
                self.world.app_has((one, self.name()))

    def rename(self):
        for found in self.pick(8):
            self.sql('UPDATE public."User" SET name = %s WHERE uuid = %s', self.name(), found)

    def swap(self):
        two = self.pick(2)
        self.sql('UPDATE public."User" AS a SET name = b.name FROM public."User" AS b'
                 ' WHERE a.uuid = ANY (%s) AND b.uuid = ANY (%s) AND a.uuid <> b.uuid', two, two)

    def repeat(self):
        self.sql('INSERT INTO public."User" (uuid, name) SELECT upper(uuid), name FROM public."User"'
                 ' WHERE uuid = ANY (%s) ON CONFLICT DO NOTHING', self.pick(3))

    def conflict(self):
        for found in self.pick(2):
            self.sql('INSERT INTO public."User" (uuid, name) VALUES (%s, %s) ON CONFLICT DO NOTHING',
                     found.upper(), self.name())

    def settle(self):
        self.sql('DELETE FROM public."User" WHERE uuid <> lower(uuid)')

    def forget_name(self):
        self.sql('UPDATE public."User" SET name = NULL WHERE uuid = ANY (%s)', self.pick(2))

    def leave(self):
        self.sql('DELETE FROM public."User" WHERE uuid = ANY (%s)', self.pick(3))

    # A run, and what it must have said

    def round(self):
        for _ in range(self.chance.randint(0, 4)):
            self.chance.choice([self.insert, self.insert, self.rename, self.rename, self.swap, self.repeat,
                                self.conflict, self.settle, self.settle, self.forget_name, self.leave])()
        if not self.sql('SELECT 1 FROM public."User" WHERE name IS NOT NULL LIMIT 1'):
            self.insert()
        flags = ["--incremental"] * (self.chance.random() < 0.5) + ["--allow-updates", "1000"]
        settings = {"SYNC_REFRESH": self.chance.choice(["always", "12h", "never"])}
        before = self.world.dimension()
        dry = self.world.sync("--dry-run", "--diff", *flags, **settings)
        assert dry.code == 0 and self.world.dimension() == before, dry
        real = self.world.sync("--diff", *flags, **settings)
        after = self.world.dimension()
        assert real.code == 0 and real.result["changes"] == dry.result["changes"], (dry, real)
        self.compare(dry.result, before, after)
        run_id = self.world.history()[-1]["run_id"]
        self.states.append((run_id, after))
        kept = {row[1:] for row in self.world.renames() if row[0] == run_id}
        assert kept == renamed(before, after), run_id

    def compare(self, result, before, after):
        said = result["changes"]
        assert names(said["inserted"]) == {(one, after[one]) for one in set(after) - set(before)}
        assert {(c["uuid"], c["old_name"], c["new_name"]) for c in said["updated"]} == renamed(before, after)
        assert [c["uuid"] for c in said["updated"]] == sorted(c["uuid"] for c in said["updated"])
        if result["mode"] == "incremental":
            self.incremental += 1
            assert (said["missing"], said["not_listed"]["missing"]) == (None, None)
        else:
            seen = {row[0].lower() for row in self.sql('SELECT uuid FROM public."User" WHERE uuid IS NOT NULL')}
            assert names(said["missing"]) == {(one, before[one]) for one in set(before) - seen}

    def replay_backwards(self):
        """From the last state's names to the first's, by the rename table alone."""
        state = dict(self.states[-1][1])
        overwritten = self.world.renames()
        for (run_id, _), (_, earlier) in zip(self.states[:0:-1], self.states[-2::-1]):
            for _, one, old_name, new_name in [row for row in overwritten if row[0] == run_id]:
                assert state[one] == new_name
                state[one] = old_name
            assert {one: state[one] for one in earlier} == earlier


def names(listed):
    return {(change["uuid"], change["name"]) for change in listed}


def renamed(before, after):
    return {(one, before[one], after[one]) for one in before if before[one] != after[one]}


def play(world, seed, rounds):
    """Returns how many names were overwritten and how many runs were incremental: none would prove nothing."""
    with world.app.changed('CREATE UNIQUE INDEX one_athlete ON public."User" (uuid)', "DROP INDEX public.one_athlete"):
        table = Rounds(world, random.Random(seed))
        for _ in range(rounds):
            table.round()
    table.replay_backwards()
    return len(world.renames()), table.incremental


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--seed", type=int, default=random.randrange(10 ** 6))
    options = parser.parse_args()
    import conftest
    from lab import servers
    with servers.two_servers(fsync="off", autovacuum="off", wal_writer_delay="1ms") as lab:
        lab.set_up()
        with conftest.empty_world(lab, conftest.load_script()) as world:
            print("seed=%d" % options.seed, flush=True)
            print("rounds=%d renamed=%d incremental=%d differences=0" % (
                (options.rounds,) + play(world, options.seed, options.rounds)))


if __name__ == "__main__":
    main()
