import sys
from pathlib import Path

# Scripts find their private modules beside them.
sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))
sys.path.insert(0, str(Path(__file__).parent))  # for `commands`
