"""The wheel holds one package, and the strategies are read from inside it."""

import subprocess
import sys
import zipfile
from pathlib import Path

from scalekit.config.strategy import names

ROOT = Path(__file__).parents[1]


def test_wheel_carries_strategies_and_launch_files(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.split("/")[0] for name in archive.namelist()}
        archive.extractall(site)
    assert {top for top in tops if not top.endswith(".dist-info")} == {"scalekit"}
    code = (
        "import scalekit, scalekit.utils.paths as r, scalekit.config.strategy as s;"
        "print(scalekit.__file__, r.folder('strategies'), r.folder('launch'), *s.names());"
        "print(s.StrategyConfig.load('zero3').shards)"
    )
    command = [sys.executable, "-S", "-c", f"import sys; sys.path[:0] = {[str(site), *_site()]}; {code}"]
    shown = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path).stdout
    assert str(site / "scalekit" / "_strategies") in shown
    assert str(site / "scalekit" / "_launch") in shown
    assert all(name in shown for name in names())


def _site() -> list[str]:
    """Where the dependencies are, which `-S` hides together with this checkout's editable install."""
    return [path for path in sys.path if path.endswith("site-packages")]
