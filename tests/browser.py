"""A page after its scripts have run."""

import shutil
import subprocess
from pathlib import Path

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


def after(path: Path, acts: str) -> str:
    """The html of a page after further JavaScript."""
    path.write_text(
        path.read_text(encoding="utf-8").replace("</body>", f"<script>{acts}</script></body>"), encoding="utf-8"
    )
    profile = path.parent.parent / f"{path.parent.name}-profile"
    options = ["--headless", "--no-sandbox", "--dump-dom", "--disable-gpu", f"--user-data-dir={profile}"]
    done = subprocess.run([BROWSER, *options, path.as_uri()], check=True, capture_output=True, text=True, timeout=240)
    return done.stdout
