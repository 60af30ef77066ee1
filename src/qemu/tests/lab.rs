//! A real QEMU with three disks for the tests of this module: virtio-scsi, virtio-blk in an I/O thread, virtio-scsi in
//! an I/O thread, each under a throttle node as on Proxmox VE. No guest runs in it: writes are made by the human
//! monitor's `qemu-io` through the device's back end, where a guest's writes would pass.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::host::Cancel;
use crate::qemu::{DiskSpec, Fleecing, QemuError, Qmp, Session, SessionSpec};

pub const VMID: u32 = 4100;
pub const MIB: u64 = 1 << 20;
pub const WAIT: Duration = Duration::from_secs(10);

/// The programs these tests need, or a line that says what is missing; in CI that is a failure.
pub fn have(test: &str) -> bool {
    for program in ["qemu-system-x86_64", "qemu-io", "qemu-img", "setpriv"] {
        if !crate::host::Host::from_env().has_command(program) {
            assert!(std::env::var_os("CI").is_none(), "{test}: {program} missing");
            println!("SKIPPED {test}: {program} missing");
            return false;
        }
    }
    true
}

pub struct Lab {
    pub dir: tempfile::TempDir,
    pub child: Child,
    baseline: Vec<String>,
    iothreads: bool,
}

/// Which QEMU: `VZKEEP_TEST_QEMU` names another than the one in `PATH`, to try versions.
fn qemu() -> String {
    std::env::var("VZKEEP_TEST_QEMU").unwrap_or_else(|_| "qemu-system-x86_64".into())
}

impl Lab {
    pub fn start() -> Self {
        Self::with(json!({"driver": "file", "filename": "b.raw"}), &[])
    }

    /// A lab whose second disk (`virtio0`) has `file` as its protocol layer.
    pub fn with(file: Value, extra: &[&str]) -> Self {
        let dir = tempfile::Builder::new().prefix("vzkeep-qemu-test").tempdir().unwrap();
        for (name, size) in [("a.raw", 8 * MIB), ("b.raw", 8 * MIB), ("c.raw", 4 * MIB + 512)] {
            fs::File::create(dir.path().join(name)).unwrap().set_len(size).unwrap();
        }
        let iothreads = std::env::var_os("VZKEEP_TEST_NO_IOTHREAD").is_none();
        let on = |id: &str| if iothreads { format!(",iothread={id}") } else { String::new() };
        let node = |name: &str, file: Value| {
            json!({
                "driver": "throttle", "throttle-group": format!("throttle-{name}"), "node-name": name,
                "file": {"driver": "raw", "node-name": format!("f-{name}"), "file": file},
            })
            .to_string()
        };
        let file_a = json!({"driver": "file", "filename": "a.raw", "node-name": "e-a"});
        let file_c = json!({"driver": "file", "filename": "c.raw", "node-name": "e-c"});
        let mut args: Vec<String> = Vec::new();
        for arg in [
            "-nodefaults",
            "-nographic",
            "-machine",
            "pc,accel=tcg",
            "-m",
            "32",
            "-no-shutdown",
            "-chardev",
            "socket,id=qmp,path=q.qmp,server=on,wait=off",
            "-mon",
            "chardev=qmp,mode=control",
            "-object",
            "throttle-group,id=throttle-drive-scsi0",
            "-object",
            "throttle-group,id=throttle-drive-scsi1",
            "-object",
            "throttle-group,id=throttle-drive-virtio0",
        ] {
            args.push(arg.into());
        }
        if iothreads {
            args.extend(["-object", "iothread,id=io0", "-object", "iothread,id=io1"].map(String::from));
        }
        for (flag, value) in [
            ("-device", "virtio-scsi-pci,id=vs0".to_owned()),
            ("-device", format!("virtio-scsi-pci,id=vs1{}", on("io1"))),
            ("-blockdev", node("drive-scsi0", file_a)),
            ("-device", "scsi-hd,bus=vs0.0,drive=drive-scsi0,id=scsi0".to_owned()),
            ("-blockdev", node("drive-virtio0", file)),
            ("-device", format!("virtio-blk-pci,drive=drive-virtio0,id=virtio0{}", on("io0"))),
            ("-blockdev", node("drive-scsi1", file_c)),
            ("-device", "scsi-hd,bus=vs1.0,drive=drive-scsi1,id=scsi1".to_owned()),
        ] {
            args.extend([flag.to_owned(), value]);
        }
        args.extend(extra.iter().map(|s| (*s).to_owned()));
        let log = fs::File::create(dir.path().join("log")).unwrap();
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL"])
            .arg(qemu())
            .args(&args)
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut lab = Self { dir, child, baseline: Vec::new(), iothreads };
        let started = Instant::now();
        while !lab.qmp_path().exists() {
            assert!(started.elapsed() < WAIT && lab.child.try_wait().unwrap().is_none(), "QEMU: {}", lab.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        lab.baseline = lab.state();
        lab
    }

    /// Whether this QEMU can do what is tested; older ones refuse disks in I/O threads.
    pub fn capable(&self) -> bool {
        !self.iothreads || self.qmp().version().0 >= 9
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn qmp_path(&self) -> PathBuf {
        self.path("q.qmp")
    }

    pub fn qmp(&self) -> Qmp {
        Qmp::connect(&self.qmp_path(), WAIT).unwrap_or_else(|e| panic!("{e}\n{}", self.log()))
    }

    /// Everything a session could leave behind, and the run state.
    pub fn state(&self) -> Vec<String> {
        let mut qmp = self.qmp();
        let mut state = Vec::new();
        for (command, arguments, key) in [
            ("query-named-block-nodes", json!({"flat": true}), "node-name"),
            ("query-block-exports", json!({}), "id"),
            ("query-jobs", json!({}), "id"),
            ("qom-list", json!({"path": "/objects"}), "name"),
            ("query-block", json!({}), "inserted"),
        ] {
            let answer = qmp.execute(command, arguments).unwrap();
            let mut names: Vec<String> = answer
                .as_array()
                .unwrap()
                .iter()
                .map(|e| if key == "inserted" { e[key]["node-name"].to_string() } else { e[key].to_string() })
                .collect();
            names.sort();
            state.push(format!("{command}: {}", names.join(" ")));
        }
        state.push(qmp.execute("query-status", json!({})).unwrap()["status"].to_string());
        state
    }

    #[track_caller]
    pub fn assert_clean(&self) {
        assert_eq!(self.state(), self.baseline);
        assert!(self.qmp().execute("nbd-server-stop", json!({})).is_err(), "an NBD server was left running");
        let left: Vec<_> = fs::read_dir(self.dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .filter(|n| n.starts_with("vzkeep-"))
            .collect();
        assert!(left.is_empty(), "{left:?}");
    }

    /// Writes as the guest would: through the back end of the device.
    #[track_caller]
    pub fn guest(&self, device: &str, command: &str) {
        let path = match device {
            "virtio0" => "/machine/peripheral/virtio0/virtio-backend".to_owned(),
            other => format!("/machine/peripheral/{other}"),
        };
        let before = self.log().len();
        let said = self.qmp().human(&format!("qemu-io -d {path} \"{command}\"")).unwrap();
        assert_eq!(said, "");
        // qemu-io prints to QEMU's own output.
        let log = self.log();
        let printed = &log[before..];
        assert!(!printed.contains("failed") && !printed.contains("rror"), "{command}: {printed}");
    }

    pub fn spec<'a>(&self, devices: &[&str]) -> SessionSpec<'a> {
        let disks = devices
            .iter()
            .map(|d| DiskSpec { device: (*d).into(), fleecing: Fleecing::Directory(self.dir.path().into()) })
            .collect();
        SessionSpec::new(VMID, &self.qmp_path(), self.dir.path(), disks)
    }

    #[track_caller]
    pub fn session(&self, devices: &[&str]) -> Session {
        Session::start(self.spec(devices), &Cancel::new()).unwrap_or_else(|e| panic!("{e}\n{}", self.log()))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs stock `qemu-io` commands on an export; its output if all of them succeeded, else what it complained about.
pub fn read(socket: &Path, export: &str, commands: &[&str]) -> Result<String, String> {
    let mut io = Command::new("qemu-io");
    io.args(["-f", "raw", "-d", "unmap"]);
    for command in commands {
        io.args(["-c", command]);
    }
    let out = io.arg(format!("nbd+unix:///{export}?socket={}", socket.display())).output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    if out.status.success() && !text.contains("failed") { Ok(text) } else { Err(text) }
}

/// The error a client sees, by the words of `qemu-io`.
pub fn read_error(socket: &Path, export: &str, command: &str) -> std::io::Error {
    let text = read(socket, export, &[command]).unwrap_err();
    let number = [("Input/output error", libc::EIO), ("Invalid argument", libc::EINVAL)];
    let found = number.iter().find(|(words, _)| text.contains(words)).unwrap_or_else(|| panic!("{text}"));
    std::io::Error::from_raw_os_error(found.1)
}

/// Fails unless the spot in the code is reached in time.
pub fn within<T>(limit: Duration, what: &str, work: impl FnOnce() -> T) -> T {
    let started = Instant::now();
    let result = work();
    assert!(started.elapsed() < limit, "{what} took {:?}", started.elapsed());
    result
}

#[track_caller]
pub fn error<T>(result: Result<T, QemuError>) -> QemuError {
    match result {
        Ok(_) => panic!("expected an error"),
        Err(e) => e,
    }
}

/// A socket on which `serve` plays the other side, in a thread of its own.
pub fn scripted(
    serve: impl FnOnce(std::os::unix::net::UnixListener) + Send + 'static,
) -> (tempfile::TempDir, PathBuf, std::thread::JoinHandle<()>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let thread = std::thread::spawn(move || serve(listener));
    (dir, path, thread)
}

pub fn say(mut to: impl Write, text: &[u8]) {
    let _ = to.write_all(text);
}
