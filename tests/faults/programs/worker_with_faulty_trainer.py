"""`swarm-worker` whose trainings run `faulty_trainer.py`: for tests, which need a child that fails on demand."""

from __future__ import annotations

import sys
from pathlib import Path

from worker.cli import main
from worker.training.child import ChildLauncher

if __name__ == "__main__":
    defaults = ChildLauncher.__init__.__kwdefaults__
    assert defaults is not None
    assert "command" in defaults
    defaults["command"] = (sys.executable, "-P", "-s", str(Path(__file__).with_name("faulty_trainer.py")))
    sys.argv[0] = "swarm-worker"
    main()
