#!/usr/bin/python3
"""Writes what became of every guest's last backup for the textfile collector of Prometheus' node_exporter.

With `hook-json: 1` in /etc/vzkeep.conf it knows everything from the description on standard input; without, it measures
the time itself and knows from the phase how the backup ended. It never fails a backup.
"""

import json
import os
import sys
import tempfile
import time

# Where the collector looks, and where we keep what we must remember. Both may be set in a file beside this script, a JSON
# object: {"textfile_dir": "...", "state_dir": "..."}
SETTINGS = {
    "textfile_dir": "/var/lib/prometheus/node-exporter",
    "state_dir": "/var/lib/vzkeep-metrics",
}

METRICS = [
    ("last_run_timestamp_seconds", "When the last backup ended, well or not."),
    ("last_success_timestamp_seconds", "When the last good backup ended."),
    ("last_success", "Whether the last backup was good."),
    ("duration_seconds", "How long the last backup took."),
    ("size_bytes", "Size of the last good archive."),
]


def replace(path, text):
    """Writes a file so that its readers see the old one or the new one."""
    handle, beside = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".vzkeep-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(beside, 0o644)
        os.rename(beside, path)
    except BaseException:
        os.unlink(beside)
        raise


def load(path):
    """The JSON object in a file; an empty one if there is none."""
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def description():
    """The description on standard input; an empty one if there is none."""
    try:
        found = json.loads(sys.stdin.read() or "{}")
    except (ValueError, OSError):
        return {}
    return found if isinstance(found, dict) and found.get("version") == 1 else {}


def quoted(text):
    """A label's value."""
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def render(guests):
    """All guests in the text format of Prometheus."""
    lines = []
    for name, words in METRICS:
        lines += [f"# HELP vzkeep_backup_{name} {words}", f"# TYPE vzkeep_backup_{name} gauge"]
        for vmid, guest in sorted(guests.items()):
            if guest.get(name) is not None:
                labels = f'vmid="{quoted(vmid)}",name="{quoted(guest.get("name") or "")}"'
                lines.append(f"vzkeep_backup_{name}{{{labels}}} {guest[name]}")
    return "\n".join(lines) + "\n"


def size_of(told):
    """Bytes of the complete archive, if there is one."""
    size = told.get("size")
    try:
        return os.stat(os.environ["TARGET"]).st_size if size is None else size
    except (KeyError, OSError):
        return None


def note(phase, guest, now, told):
    """Notes what this phase says about its guest; `told` is the outcome of the description."""
    if phase == "backup-start":
        guest["begun"], guest["failed"], guest["size"] = now, False, None
    elif phase == "backup-end":
        # A later phase may still fail it.
        guest["size"] = size_of(told)
    elif phase == "backup-abort":
        # Perhaps without a backup-start before, when the guest was locked.
        guest["failed"] = True
    elif phase == "log-end":
        state = told.get("state")
        good = state == "done" if state else not guest.get("failed")
        size = size_of(told) if told.get("size") is not None else guest.get("size")
        guest["last_run_timestamp_seconds"] = now
        guest["last_success"] = int(good)
        guest["duration_seconds"] = told.get("seconds", round(now - guest.get("begun", now), 3))
        if good:
            guest["last_success_timestamp_seconds"] = now
            guest["size_bytes"] = size
        for word in ("begun", "failed", "size"):
            guest.pop(word, None)


def main():
    """Notes one call; the file of the collector is written when a guest has ended."""
    phase, vmid = (sys.argv + ["", "", ""])[1], (sys.argv + ["", "", "", ""])[3]
    if not vmid:
        return
    settings = {**SETTINGS, **load(sys.argv[0] + ".json")}
    os.makedirs(settings["state_dir"], exist_ok=True)
    state = os.path.join(settings["state_dir"], "guests.json")
    about = description()
    guests = load(state)
    guest = guests.setdefault(vmid, {})
    name = (about.get("guest") or {}).get("name") or os.environ.get("HOSTNAME")
    if name:
        guest["name"] = name
    note(phase, guest, round(time.time(), 3), about.get("outcome") or {})
    replace(state, json.dumps(guests, indent=1, sort_keys=True) + "\n")
    if phase == "log-end":
        replace(os.path.join(settings["textfile_dir"], "vzkeep.prom"), render(guests))


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as error:
        # A number that is missing is no reason to fail a backup.
        print(f"metrics: {error}", file=sys.stderr)
