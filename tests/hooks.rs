//! Hooks beyond the original, as `/etc/vzkeep.conf` switches them on, and the examples of `hooks/`: all through the program
//! itself, on small guests that are off.

mod lab;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::{Dice, Format, Guest, Node, mib};
use nix::sys::signal::Signal;
use serde_json::Value;

const SETTINGS: &str = "/etc/vzkeep.conf";

fn node() -> Result<Node> {
    let node = Node::new()?.guest(Guest::new(100).name("web01").disk("scsi0", Format::Raw, mib(2)))?;
    fs::write(node.disk(100, "scsi0")?.0, Dice::seeded(7).bytes(2 << 20))?;
    fs::create_dir_all(node.path("/root"))?;
    Ok(node)
}

/// Puts a program at `path` of the node.
fn program(node: &Node, path: &str, text: &str) -> Result<PathBuf> {
    let file = node.path(path);
    fs::create_dir_all(file.parent().context("a path without a directory")?)?;
    fs::write(&file, text)?;
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755))?;
    Ok(file)
}

/// Puts one of the examples at `/root` of the node.
fn example(node: &Node, name: &str) -> Result<String> {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("hooks").join(name))?;
    program(node, &format!("/root/{name}"), &text)?;
    Ok(format!("/root/{name}"))
}

fn lines(node: &Node, path: &str) -> Vec<String> {
    fs::read_to_string(node.path(path)).unwrap_or_default().lines().map(str::to_owned).collect()
}

#[test]
fn a_directory_of_hooks_with_all_that_can_be_switched_on() -> Result<()> {
    if !lab::require("a_directory_of_hooks_with_all_that_can_be_switched_on", &["qemu-img"]) {
        return Ok(());
    }
    let node = node()?;
    let root = node.root().display().to_string();
    let note = |who: &str| {
        format!("#!/bin/sh\necho \"{who} $*|$PATH|$TARFILE|$TARGET\" >>{root}/calls\n/bin/cat >>{root}/{who}.json\n")
    };
    program(&node, "/root/script", &note("script"))?;
    program(&node, "/etc/vzkeep/hooks.d/20-b.sh", &note("b"))?;
    program(&node, "/etc/vzkeep/hooks.d/10-a", &note("a"))?;
    program(&node, "/etc/vzkeep/hooks.d/10-a~", &note("old"))?;
    fs::write(node.path("/etc/vzkeep/hooks.d/30-text"), "no program\n")?;
    let words = ["100", "--storage", "backup", "--compress", "zstd", "--script", "/root/script"];

    // Without the file: the script alone, in an empty environment, with nothing to read.
    let output = node.vzdump(&words)?;
    ensure!(output.code == 0, "{}{}", output.stdout, output.stderr);
    let phases =
        ["job-init", "job-start", "backup-start stop 100", "backup-end stop 100", "log-end stop 100", "job-end"];
    let calls = lines(&node, "/calls");
    let called: Vec<&str> = calls.iter().map(|call| call.split('|').next().unwrap_or_default()).collect();
    ensure!(called == phases.map(|phase| format!("script {phase}")), "{calls:?}");
    // A shell that is given no PATH makes one up; TARFILE it does not.
    ensure!(calls.iter().all(|call| call.split('|').nth(2) == Some("")), "{calls:?}");
    ensure!(fs::read(node.path("/script.json"))?.is_empty(), "there was something on standard input");

    let settings = "hooks-dir: /etc/vzkeep/hooks.d\nhook-json: 1\nhook-legacy-env: 1\nhook-timeout: 60\n";
    fs::write(node.path(SETTINGS), settings)?;
    fs::remove_file(node.path("/calls"))?;
    let output = node.vzdump(&words)?;
    ensure!(output.code == 0, "{}{}", output.stdout, output.stderr);
    output.says(&["WARN: hook '/etc/vzkeep/hooks.d/30-text' is left out: it is not executable"])?;
    let calls = lines(&node, "/calls");
    let called: Vec<&str> = calls.iter().map(|call| call.split('|').next().unwrap_or_default()).collect();
    let wanted: Vec<String> =
        phases.iter().flat_map(|phase| ["script", "a", "b"].map(|who| format!("{who} {phase}"))).collect();
    ensure!(called == wanted, "{calls:?}");
    for call in &calls {
        let fields: Vec<&str> = call.split('|').collect();
        ensure!(fields[1].contains("/usr/bin:") && fields[2] == fields[3], "{call}");
    }
    let said = lines(&node, "/b.json");
    let told: Vec<Value> = said.iter().map(|line| Ok(serde_json::from_str(line)?)).collect::<Result<_>>()?;
    ensure!(said == lines(&node, "/a.json") || told.len() == phases.len(), "{said:?}");
    let first = &told[0];
    ensure!(first["version"] == 1 && first["phase"] == "job-init" && first["guest"].is_null(), "{first}");
    ensure!(first["job"]["storage"] == "backup" && first["job"]["compress"] == "zstd", "{first}");
    ensure!(first["job"]["guests"] == serde_json::json!([100]) && first["job"]["node"] == "pve1", "{first}");
    let end = &told[3];
    let archive = node.archives("backup", 100)?.pop().context("no archive")?;
    ensure!(end["phase"] == "backup-end" && end["mode"] == "stop" && end["vmid"] == 100, "{end}");
    ensure!(end["target"] == archive.display().to_string(), "{end}");
    ensure!(end["outcome"]["size"] == archive.metadata()?.len() && end["outcome"]["state"] == "running", "{end}");
    let disk = serde_json::json!({
        "key": "scsi0", "volid": "local:100/vm-100-disk-0.raw", "size": 2 << 20, "included": true,
    });
    ensure!(end["guest"]["name"] == "web01" && end["guest"]["disks"] == serde_json::json!([disk]), "{end}");
    ensure!(told[4]["outcome"]["state"] == "done" && told[5]["outcome"]["state"] == "done", "{told:?}");

    // The first that fails ends the phase; phases that clean up are called for all.
    program(
        &node,
        "/etc/vzkeep/hooks.d/10-a",
        &format!("{}\n[ $1 != backup-end -a $1 != backup-abort ]\n", note("a")),
    )?;
    fs::remove_file(node.path("/calls"))?;
    let output = node.vzdump(&words)?;
    output.failed_with(&[
        "ERROR: Backup of VM 100 failed - command '/etc/vzkeep/hooks.d/10-a backup-end stop 100' failed: exit code 1",
        "WARN: command '/etc/vzkeep/hooks.d/10-a backup-abort stop 100' failed: exit code 1",
    ])?;
    let calls = lines(&node, "/calls");
    let of = |phase: &str| calls.iter().filter(|call| call.contains(phase)).count();
    ensure!((of(" backup-end "), of(" backup-abort "), of(" log-end ")) == (2, 3, 3), "{calls:?}");
    let said = lines(&node, "/script.json");
    let abort: Value = serde_json::from_str(&said[said.len() - 3])?;
    ensure!(abort["phase"] == "backup-abort" && abort["outcome"]["state"] == "failed", "{abort}");
    ensure!(abort["outcome"]["error"].as_str().is_some_and(|error| error.contains("exit code 1")), "{abort}");
    node.assert_clean_on_disk(100);
    Ok(())
}

#[test]
fn settings_that_cannot_be_used() -> Result<()> {
    if !lab::require("settings_that_cannot_be_used", &["qemu-img"]) {
        return Ok(());
    }
    let node = node()?;
    fs::write(node.path(SETTINGS), b"hook-timeout: soon\r\ncolor: \xff\r\nhook-json")?;
    let output = node.vzdump(&["100", "--storage", "backup"])?;
    ensure!(output.code == 0, "{}{}", output.stdout, output.stderr);
    output.says(&[
        "WARN: '/etc/vzkeep.conf': ignoring hook-timeout: 'soon': ",
        "WARN: '/etc/vzkeep.conf': unknown key 'color'",
        "WARN: '/etc/vzkeep.conf': ignoring the line 'hook-json': expected 'key: value'",
    ])?;
    fs::write(node.path(SETTINGS), "hooks-dir: /etc/nosuch.d\n")?;
    let output = node.vzdump(&["100", "--storage", "backup"])?;
    let wanted = "Error: The hook directory '/etc/nosuch.d' (hooks-dir in /etc/vzkeep.conf) cannot be read: ";
    ensure!(output.code == 255 && output.stderr.contains(wanted), "{}", output.stderr);
    node.assert_clean_on_disk(100);
    Ok(())
}

#[test]
fn a_hook_that_hangs_fails_its_phase() -> Result<()> {
    if !lab::require("a_hook_that_hangs_fails_its_phase", &["qemu-img"]) {
        return Ok(());
    }
    let node = node()?;
    program(&node, "/root/hook", "#!/bin/sh\ncase $1 in backup-start|backup-abort) /bin/sleep 100;; esac\n")?;
    fs::write(node.path(SETTINGS), "hook-timeout: default=60,backup-start=1,backup-abort=1\n")?;
    let output = node.vzdump(&["100", "--storage", "backup", "--script", "/root/hook"])?;
    let late = "failed: not finished after 1 seconds (hook-timeout in /etc/vzkeep.conf)";
    output.failed_with(&[
        &format!("ERROR: Backup of VM 100 failed - command '/root/hook backup-start stop 100' {late}"),
        &format!("WARN: command '/root/hook backup-abort stop 100' {late}"),
        "INFO: Backup job finished with errors",
    ])?;
    node.assert_clean_on_disk(100);
    ensure!(node.archives("backup", 100)?.is_empty(), "an archive of a guest that failed");
    Ok(())
}

#[test]
fn a_hook_that_cleans_up_for_ever_is_ended_by_a_second_signal() -> Result<()> {
    if !lab::require("a_hook_that_cleans_up_for_ever_is_ended_by_a_second_signal", &["qemu-img"]) {
        return Ok(());
    }
    let node = node()?;
    let hang = "#!/bin/sh\necho \"begin $1\"\ncase $1 in backup-start|backup-abort) /bin/sleep 100;; esac\n";
    program(&node, "/root/hook", hang)?;
    let mut run = node.spawn_vzdump(&["100", "--storage", "backup", "--script", "/root/hook"])?;
    run.wait_for("begin backup-start", Duration::from_secs(30))?;
    run.signal(Signal::SIGTERM)?;
    run.wait_for("begin backup-abort", Duration::from_secs(30))?;
    // One signal asks to stop, and what cleans up then is let work.
    std::thread::sleep(Duration::from_millis(700));
    ensure!(run.is_running()?, "the first signal ended the clean-up");
    let asked = Instant::now();
    run.signal(Signal::SIGTERM)?;
    let output = run.wait(Duration::from_secs(30))?;
    println!("ended {:?} after the second signal", asked.elapsed());
    output.failed_with(&[
        "ERROR: Backup of VM 100 failed - interrupted by signal",
        "WARN: command '/root/hook backup-abort stop 100' failed: ended by a second signal",
        "INFO: begin log-end",
        "INFO: begin job-abort",
        "ERROR: Backup job failed - interrupted by signal",
    ])?;
    node.assert_clean_on_disk(100);
    Ok(())
}

#[test]
fn the_perl_example() -> Result<()> {
    if !lab::require("the_perl_example", &["qemu-img", "perl"]) {
        return Ok(());
    }
    let node = node()?;
    let script = example(&node, "vzdump-hook-script.pl")?;
    let output = node.vzdump(&["100", "--storage", "backup", "--script", &script])?;
    ensure!(output.code == 0, "{}{}", output.stdout, output.stderr);
    let dump = node.path("/mnt/backup/dump").display().to_string();
    output.says(&[
        "INFO: HOOK: job-init STOREID=backup",
        &format!("INFO: HOOK: job-start STOREID=backup DUMPDIR={dump}"),
        &format!(
            "INFO: HOOK: backup-start stop 100 STOREID=backup DUMPDIR={dump} VMTYPE=qemu HOSTNAME=web01 TARGET={dump}/"
        ),
        "INFO: HOOK: backup-end stop 100 ",
        "INFO: HOOK: log-end stop 100 ",
        "INFO: HOOK: job-end STOREID=backup",
    ])?;
    // Code of one's own that dies fails the phase, and its words are in the log.
    let text = fs::read_to_string(node.path(&script))?;
    let own = text.replace("'job-start' => sub { }", "'job-start' => sub { die \"the tape is full\\n\" }");
    ensure!(own != text, "the example has no place for code in job-start");
    program(&node, &script, &own)?;
    let output = node.vzdump(&["100", "--storage", "backup", "--script", &script])?;
    output.failed_with(&["INFO: the tape is full", "INFO: HOOK: job-abort", "job-start' failed: exit code "])?;
    Ok(())
}

#[test]
fn the_shell_example_copies_and_verifies() -> Result<()> {
    if !lab::require("the_shell_example_copies_and_verifies", &["qemu-img", "zstd", "gzip", "lzop", "mount"]) {
        return Ok(());
    }
    let node = node()?.small_storage("second", 6 << 20)?;
    let script = example(&node, "copy-and-verify.sh")?;
    let copies = node.path("/mnt/second/copies");
    let settings = |to: &Path, on_failure: &str| {
        fs::write(
            node.path("/root/copy-and-verify.sh.conf"),
            format!("COPY_TO={}\nON_FAILURE={on_failure}\n", to.display()),
        )
    };
    let run = |compress: &str| {
        // Names have whole seconds.
        let known = node.archives("backup", 100)?;
        let output = node.vzdump(&["100", "--storage", "backup", "--compress", compress, "--script", &script])?;
        let fresh = node.archives("backup", 100)?.into_iter().find(|path| !known.contains(path));
        Ok::<_, anyhow::Error>((output, fresh.context("no archive")?))
    };
    let copied = || -> Result<Vec<PathBuf>> { fs::read_dir(&copies)?.map(|entry| Ok(entry?.path())).collect() };

    // A directory that is missing is most often one that is not mounted.
    settings(&copies, "fail")?;
    let (output, archive) = run("zstd")?;
    output.failed_with(&[
        &format!("INFO: copy-and-verify: ERROR: '{}' is no directory: is it mounted?", copies.display()),
        "failed: exit code 1",
    ])?;
    ensure!(!copies.exists() && archive.exists(), "the archive of a backup whose copy failed is kept");
    settings(&copies, "warn")?;
    let (output, _) = run("zstd")?;
    ensure!(output.code == 0, "{}{}", output.stdout, output.stderr);
    output.says(&["INFO: copy-and-verify: WARNING: ", "INFO: Backup job finished successfully"])?;

    fs::create_dir(&copies)?;
    settings(&copies, "fail")?;
    for compress in ["zstd", "gzip", "lzo", "0"] {
        let (output, archive) = run(compress)?;
        ensure!(output.code == 0, "{compress}: {}{}", output.stdout, output.stderr);
        output.says(&[" is verified, sha256 "])?;
        let copy = copies.join(archive.file_name().unwrap_or_default());
        ensure!(fs::read(&copy)? == fs::read(&archive)?, "{compress}: the copy differs");
        ensure!(copied()? == [copy.clone()], "{:?}", copied()?);
        fs::remove_file(copy)?;
    }

    // Half an archive is found out, whoever wrote it.
    let damaged = node.path("/tmp/half.vma.zst");
    let archive = node.archives("backup", 100)?.into_iter().find(|path| path.extension().is_some_and(|e| e == "zst"));
    let whole = fs::read(archive.context("no archive")?)?;
    fs::write(&damaged, &whole[..whole.len() / 2])?;
    let called = Command::new(node.path(&script)).arg("backup-end").env_clear().env("TARGET", &damaged).output()?;
    let said = String::from_utf8_lossy(&called.stderr).into_owned();
    ensure!(called.status.code() == Some(1) && said.contains("is damaged, and so is"), "{said}");
    ensure!(copied()?.is_empty(), "left: {:?}", copied()?);

    // No room: nothing that looks like an archive, and nothing of the attempt, is left.
    fs::write(node.path("/mnt/second/full"), vec![1; 5 << 20])?;
    let (output, _) = run("0")?;
    output.failed_with(&["cannot be copied to", "backup-end stop 100' failed: exit code 1"])?;
    ensure!(copied()?.is_empty(), "left: {:?}", copied()?);
    node.assert_clean_on_disk(100);
    Ok(())
}

#[test]
fn the_python_example_writes_metrics() -> Result<()> {
    if !lab::require("the_python_example_writes_metrics", &["qemu-img", "python3"]) {
        return Ok(());
    }
    let node = node()?.guest(Guest::new(101).name("db \"one\"").disk("scsi0", Format::Raw, mib(1)))?;
    let script = example(&node, "metrics.py")?;
    let (prom, state) = (node.path("/prom"), node.path("/state"));
    let settings = serde_json::json!({"textfile_dir": prom, "state_dir": state});
    fs::write(node.path("/root/metrics.py.json"), settings.to_string())?;

    // The collector's directory is missing: no reason to fail a backup.
    let words = ["100", "101", "--storage", "backup", "--script", &script];
    let output = node.vzdump(&words)?;
    ensure!(output.code == 0, "{}{}", output.stdout, output.stderr);
    output.says(&["INFO: metrics: "])?;
    fs::create_dir(&prom)?;

    for json in ["0", "1"] {
        fs::write(node.path(SETTINGS), format!("hook-json: {json}\n"))?;
        fs::remove_dir_all(&state)?;
        let image = node.disk(101, "scsi0")?.0;
        for whole in [true, false] {
            let aside = image.with_extension("aside");
            if !whole {
                fs::rename(&image, &aside)?;
            }
            let output = node.vzdump(&words)?;
            ensure!(output.code == if whole { 0 } else { 255 }, "{}{}", output.stdout, output.stderr);
            let text = fs::read_to_string(prom.join("vzkeep.prom"))?;
            let value = |metric: &str, labels: &str| -> Result<f64> {
                let start = format!("vzkeep_backup_{metric}{{{labels}}} ");
                let line = text.lines().find_map(|line| line.strip_prefix(&start));
                Ok(line.with_context(|| format!("no {start}in\n{text}"))?.parse()?)
            };
            let (web, db) = (r#"vmid="100",name="web01""#, r#"vmid="101",name="db \"one\"""#);
            let archive = node.archives("backup", 100)?.pop().context("no archive")?;
            ensure!((value("last_success", web)? - 1.0).abs() < 0.1, "{text}");
            ensure!((value("size_bytes", web)? - archive.metadata()?.len() as f64).abs() < 0.5, "{text}");
            ensure!((0.0..100.0).contains(&value("duration_seconds", web)?), "{text}");
            ensure!((value("last_success", db)? - f64::from(u8::from(whole))).abs() < 0.1, "json {json}: {text}");
            let behind = value("last_run_timestamp_seconds", db)? - value("last_success_timestamp_seconds", db)?;
            ensure!((behind > 0.0) != whole, "json {json}, whole {whole}: {text}");
            ensure!(fs::read_dir(&prom)?.count() == 1, "something is left beside the collector's file");
            if !whole {
                fs::rename(&aside, &image)?;
            }
        }
    }
    Ok(())
}
