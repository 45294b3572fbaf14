"""What `guard` offers."""

import subprocess
import sys

import guard


def test_guard_exports_these_names_and_no_others() -> None:
    assert sorted(guard.__all__) == ["EditSpec", "NeuronGuardError", "install"]
    assert all(hasattr(guard, name) for name in guard.__all__)


def test_importing_guard_does_not_import_transformers() -> None:
    program = (
        "import sys; from guard import EditSpec, NeuronGuardError, install; sys.exit('transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
