"""What becomes of each row (DESIGN section 3), and of a run as a whole."""

from conftest import ANN, BOB


def test_first_load(world):
    world.app_has((ANN, "Ann Archer"), (BOB, "Bob Bowman"))
    run = world.sync()
    assert (run.code, run.counts()) == (0, "2: 2 new"), run
    assert world.dimension() == {ANN: "Ann Archer", BOB: "Bob Bowman"}


def test_first_load_sub(world):
    world.app_has((ANN, "Ann Archer"), (BOB, "Bob Bowman"))
    run = world.run("--json")
    assert (run.code, run.counts()) == (0, "2: 2 new"), run
    assert world.dimension() == {ANN: "Ann Archer", BOB: "Bob Bowman"}
