//! Takes out of a recorded or fresh output what differs from run to run, as `golden/README.md` lists it, and the few lines that
//! speak of the inside of stock QEMU, where this engine works differently.

use std::sync::LazyLock;

use regex::Regex;

/// Lines that only one side prints, and why that is right.
const EXCEPTIONS: &[(&str, &str)] = &[
    (
        r"^INFO: starting kvm to execute backup task$",
        "a stopped guest's disks are read directly, no QEMU is started for it",
    ),
    (r"^INFO: stopping kvm after backup task$", "as above"),
    (r"^INFO: NOT in this backup: ", "vzkeep names once more, at the end, what a container's archive does not have"),
    (r"^INFO: the container stood still for ", "and says for how long it stood still"),
    (r"^INFO: starting backup via QMP command$", "as above: no QMP for a stopped guest"),
    (r"^INFO: started backup task 'UUID'$", "the task runs in vzkeep, not in QEMU"),
    (r"^INFO: /usr/bin/vma create ", "a guest without disks is archived by vzkeep, not by a child program"),
    (r"^(INFO: )?Formatting '", "qemu-img's own output, an artifact of the recording"),
    (r"^failed to connect to monitor socket", "artifact of the recording"),
    (r"^Use of uninitialized value", "artifact of the recording"),
    (r"^INFO: trying to acquire lock\.\.\. OK$", "artifact of the recording"),
    (r"^(zstd|gzip|pigz|lzop): .*No space left on device", "the compressor is no child program that could complain"),
    (
        r"(got unexpected control message:|can't acquire lock '\S+' (\(wait = 0\)|- got timeout))$",
        "the original's worker ends without a word to its parent here; the ERROR line before it is compared",
    ),
    (r"^VM \d+ started with PID ", "as above: no QEMU is started"),
    (r"^failed to connect to DBus ", "artifact of the recording"),
    (r"^VM \d+ qga command failed", "the inside of the node's own guest agent client"),
    (r"^PARSED ", "the program of the recording that ran a job"),
    (r"Read error \(39\) : premature end$", "a truncated archive is read by vzkeep itself: words of zstd,"),
    (r"^vma: restore failed - |vma extract -v -r", "of vma,"),
    (r"^/bin/bash: line 1: ", "of the shell between them,"),
    (r"^no lock found trying to remove 'create' +lock$", "and of the clean-up that the original leaves half done"),
    (r"^removed the placeholder config of VM \d+$", "that vzkeep does not"),
    (r"^replaced volume '\S+' removed$", "the disks that --force replaces go only when the new ones are complete"),
    (
        r"^WARN: mount point \w+ \('[^']*'\) was not in the backup: it is made anew and is empty$",
        "the original says nothing about a mount point without its files",
    ),
    (
        r"^INFO: SIZE, \d+ files in Ns,",
        "the original does not say how far a container's archive is; here a slow machine may",
    ),
    (r"^error before or during data restore, .* state is NOT cleaned up\.$", "a restore that failed is cleaned up"),
];

/// Rewrites applied to every line, in this order.
static RULES: LazyLock<Vec<(Regex, &'static str)>> = LazyLock::new(|| {
    [
        // An archive is read by vzkeep itself, not through a pipe of two programs; the recorded one is not at hand.
        (r"^restore vma archive: .*", "restore vma archive: HOW"),
        (r"command 'set -o pipefail && .*' failed: ", ""),
        // A truncated archive: the original only knows that its child trapped, vzkeep where it was cut off.
        (r"exit code 133$|unable to restore VM \d+ - archive '[^']*': reading at byte \d+ .*", "ARCHIVE BROKEN"),
        // Where in its source the original failed.
        (r" at /usr/share/perl5/\S+ line \d+\.$", ""),
        // With --force the old disks are still there, so that the new ones have other numbers.
        (r"^((?:new volume ID is|map '[\w-]+' to|temporary volume) '\S*vm-\d+-disk-)\d+", "${1}N"),
        (r"^CFG: size: \d+ ", "CFG: size: N "),
        (r"^CTIME: \w{3} \w{3} [ \d]\d \d\d:\d\d:\d\d \d{4}$", "CTIME: DATE"),
        (r"^Total bytes read: .*", "Total bytes read: N"),
        (r"^progress \d+% \(read \d+ bytes, duration \d+ sec\)$", "progress N%"),
        (r"sparse bytes \d+ \([0-9.]+%\)$", "sparse bytes N (N%)"),
        (r"zero blocks [0-9.]+%$", "zero blocks N%"),
        (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "DATE"),
        (r"\d{4}_\d\d_\d\d-\d\d_\d\d_\d\d", "STAMP"),
        (r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "UUID"),
        (r"UPID:\w+:[0-9A-F]+:[0-9A-F]+:[0-9A-F]+:(\S*)", "UPID:$1"),
        (r"^(UPID:\S+) [0-9A-F]{8} ", "$1 TIME "),
        // Stock QEMU sees its compressor die, vzkeep sees why, and says where.
        (r"write error - Broken pipe$", "write error - No space left on device"),
        (r"(write error - .*) \('[^']*' after \d+ bytes\)$", "$1"),
        (r"\(\d+:\d\d:\d\d\)", "(DURATION)"),
        (r"archive file size: .*", "archive file size: SIZE"),
        (r"Total bytes written: .*", "Total bytes written: SIZE"),
        (r"sync finished - transferred .* in \d+s$", "sync finished - transferred SIZE in Ns"),
        (r"/proc/\d+/root/", "/proc/PID/root/"),
        (r"[0-9.]+ [KMGT]?i?B(/s)?", "SIZE"),
        (r"\(\d+%\)", "(N%)"),
        (r" +\d+%", " N%"),
        (r"in \d+s,", "in Ns,"),
        (r"(in|after) <?\d+ seconds?", "$1 N seconds"),
        // Less than a second has no rate.
        (r"^(.*transferred SIZE) in N seconds.*", "$1"),
        (r"vzdumptmp\d+", "vzdumptmpN"),
        // The program of the recordings ran a job without telling its name.
        (r" --job-id backup-[\w-]+", ""),
    ]
    .into_iter()
    .map(|(pattern, to)| (Regex::new(pattern).expect("rule"), to))
    .collect()
});

static DROPPED: LazyLock<Vec<Regex>> =
    LazyLock::new(|| EXCEPTIONS.iter().map(|(pattern, _)| Regex::new(pattern).expect("exception")).collect());

/// `text` with everything that differs from run to run taken out, as lines. `root` is the prefix of the test's node.
pub fn lines(text: &str, root: &str) -> Vec<String> {
    let text = if root.is_empty() { text.to_owned() } else { text.replace(root, "") };
    let mut out: Vec<String> = Vec::new();
    for line in text.lines() {
        let mut line = line.trim_end().to_owned();
        for (rule, to) in RULES.iter() {
            line = rule.replace_all(&line, *to).into_owned();
        }
        let body = line.strip_prefix("DATE ").unwrap_or(&line);
        if DROPPED.iter().any(|d| d.is_match(body)) {
            continue;
        }
        let line = sort_job_options(&line);
        // However many progress lines there were, one stands for all.
        if is_progress(&line) && out.last() == Some(&line) {
            continue;
        }
        // How far a copy came before it broke is not the same twice.
        if body.starts_with("ERROR: ") && out.last().is_some_and(|last| is_progress(last)) {
            out.pop();
        }
        out.push(line);
    }
    order_hook_pairs(&mut out);
    // What a restore made is undone backwards here.
    let removed = |line: &String| line.starts_with("temporary volume ") && line.ends_with(" successfully removed");
    out.chunk_by_mut(|a, b| removed(a) && removed(b)).for_each(<[String]>::sort);
    out
}

fn is_progress(line: &str) -> bool {
    line.contains(" N% (SIZE of SIZE) in Ns") || line == "progress N%"
}

/// `starting new backup job: vzdump 100 --b 1 --a 2` with the options in alphabetical order.
fn sort_job_options(line: &str) -> String {
    const START: &str = "starting new backup job: vzdump";
    let Some(at) = line.find(START) else { return line.to_owned() };
    let (head, tail) = line.split_at(at + START.len());
    let mut groups: Vec<String> = Vec::new();
    let mut vmids = String::new();
    for word in tail.split(" --").enumerate() {
        match word {
            (0, ids) => vmids = ids.to_owned(),
            (_, option) => groups.push(format!(" --{option}")),
        }
    }
    groups.sort();
    format!("{head}{vmids}{}", groups.concat())
}

/// A hook's standard output and error arrive in any order: put the error line of each call second.
fn order_hook_pairs(lines: &mut [String]) {
    for i in 1..lines.len() {
        let (before, after) = lines.split_at_mut(i);
        let (first, second) = (&mut before[i - 1], &mut after[0]);
        let phase = |line: &str, kind: &str| {
            line.split_once(kind).map(|(_, rest)| rest.split(' ').next().unwrap_or_default().to_owned())
        };
        if let (Some(a), Some(b)) = (phase(first, "HOOK-STDERR: "), phase(second, " HOOK: "))
            && a == b
        {
            std::mem::swap(first, second);
        }
    }
}
