//! A storage of type `pbs`: the repository of a Proxmox Backup Server, what its secrets are on this node, and how the two
//! programs that talk to it are told: QEMU by the arguments of its `backup` command, `proxmox-backup-client` by its command
//! line and environment. No data goes through here.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::config::Storage;
use crate::host::Host;
use crate::schema::Keep;

/// The client program, found through `PATH`.
pub const CLIENT: &str = "proxmox-backup-client";
/// Where the node keeps passwords and keys of storages.
const SECRETS: &str = "/etc/pve/priv/storage";
/// The server's own port, which is left out of a repository's name.
const PORT: &str = "8007";

/// A backup server cannot be used, or its client failed.
#[derive(Debug, thiserror::Error)]
pub enum PbsError {
    /// `storage.cfg` lacks something.
    #[error("storage '{id}' has no '{key}'")]
    Incomplete {
        /// The storage.
        id: String,
        /// The property.
        key: &'static str,
    },
    /// A password or key is not there or cannot be read.
    #[error("storage '{id}': {what} '{path}' cannot be read: {source}")]
    Secret {
        /// The storage.
        id: String,
        /// `password file`, `encryption key`.
        what: &'static str,
        /// The node's path.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A master key encrypts the encryption key; alone it does nothing.
    #[error("storage '{0}' has a master key but no encryption key: set 'encryption-key' or remove 'master-pubkey'")]
    MasterAlone(String),
    /// The client is not installed.
    #[error("backups to a Proxmox Backup Server need the program '{CLIENT}', which is not installed")]
    NoClient,
    /// The client said no; the subcommand, and what it said.
    #[error("{CLIENT} {verb} failed: {reason}")]
    Client {
        /// `prune`, `upload-log` ...
        verb: String,
        /// Its last words.
        reason: String,
    },
}

/// A backup of one guest on the server: `vm/100/2026-11-22T09:24:32Z`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Snapshot {
    /// The guest.
    pub vmid: u32,
    /// Seconds since 1970; with the guest it is the backup's identity.
    pub time: i64,
}

impl Snapshot {
    /// All backups of the guest: `vm/100`.
    pub fn group(&self) -> String {
        format!("vm/{}", self.vmid)
    }
}

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = jiff::Timestamp::from_second(self.time).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
        write!(f, "{}/{}", self.group(), time.strftime("%Y-%m-%dT%H:%M:%SZ"))
    }
}

/// One storage of type `pbs` with all that is needed to use it.
#[derive(Clone, PartialEq, Eq)]
pub struct Repository {
    /// `root@pam@10.0.0.7:store1`, as client and QEMU take it.
    pub repository: String,
    namespace: Option<String>,
    fingerprint: Option<String>,
    password: String,
    key: Option<PathBuf>,
    master_key: Option<PathBuf>,
}

impl fmt::Debug for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the password.
        f.debug_struct("Repository").field("repository", &self.repository).finish_non_exhaustive()
    }
}

/// What QEMU is to back up.
#[derive(Debug, Clone)]
pub struct QemuBackup<'a> {
    /// Which backup it becomes.
    pub snapshot: Snapshot,
    /// The devices: `drive-scsi0`.
    pub devices: &'a [String],
    /// The guest's config, a file.
    pub config: &'a Path,
    /// Its firewall rules, if it has some.
    pub firewall: Option<&'a Path>,
    /// Bytes a second; 0 for as many as there are.
    pub speed: u64,
    /// Requests in flight per disk.
    pub max_workers: u64,
    /// Whether the guest is a template, whose disks do not change any more.
    pub template: bool,
}

impl Repository {
    /// The repository that `storage` names; reads its secrets.
    ///
    /// # Errors
    /// When a property or a secret is missing. A key that is configured but cannot be read is never done without.
    pub fn open(host: &Host, storage: &Storage) -> Result<Self, PbsError> {
        let id = storage.id.clone();
        let need = |key| storage.get(key).ok_or_else(|| PbsError::Incomplete { id: id.clone(), key });
        let (server, datastore) = (need("server")?, need("datastore")?);
        let user = storage.get("username").unwrap_or("root@pam");
        let server = if server.contains(':') { format!("[{server}]") } else { server.to_owned() };
        let port = storage.get("port").filter(|port| *port != PORT).map(|port| format!(":{port}"));
        let secret = |what, end: &str| {
            let path = PathBuf::from(format!("{SECRETS}/{id}.{end}"));
            let failed = {
                let (id, path) = (id.clone(), path.clone());
                move |source| PbsError::Secret { id, what, path, source }
            };
            match std::fs::read_to_string(host.path(&path)) {
                Ok(text) => Ok((host.path(&path), text)),
                Err(source) => Err(failed(source)),
            }
        };
        let (_, password) = secret("password file", "pw")?;
        let optional = |what, end, wanted: bool| match secret(what, end) {
            Ok((path, _)) => Ok(Some(path)),
            Err(PbsError::Secret { source, .. }) if !wanted && source.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        };
        // As with the original a key file is enough: what was encrypted once is never sent in the clear.
        let key = optional("encryption key", "enc", storage.get("encryption-key").is_some())?;
        let master_key = match storage.get("master-pubkey") {
            Some(_) => optional("master key", "master.pem", true)?,
            None => None,
        };
        if master_key.is_some() && key.is_none() {
            return Err(PbsError::MasterAlone(id));
        }
        Ok(Self {
            repository: format!("{user}@{server}{}:{datastore}", port.unwrap_or_default()),
            namespace: storage.get("namespace").filter(|ns| !ns.is_empty()).map(str::to_owned),
            fingerprint: storage.get("fingerprint").map(str::to_owned),
            password: password.lines().next().unwrap_or_default().to_owned(),
            key,
            master_key,
        })
    }

    /// Whether what is sent is encrypted on this side.
    pub fn encrypts(&self) -> bool {
        self.key.is_some()
    }

    /// Whether a master key is configured.
    pub fn has_master_key(&self) -> bool {
        self.master_key.is_some()
    }

    /// The arguments of QEMU's `backup` command; `support` is its answer to `query-proxmox-support`.
    pub fn qemu_arguments(&self, backup: &QemuBackup<'_>, support: &Value) -> Value {
        let knows = |what: &str| support[what] == true;
        let mut arguments = json!({
            "format": "pbs",
            "backup-file": self.repository,
            "backup-id": backup.snapshot.vmid.to_string(),
            "backup-time": backup.snapshot.time,
            "password": self.password,
            "devlist": backup.devices.join(","),
            "config-file": backup.config,
            "encrypt": self.encrypts(),
            "speed": backup.speed,
        });
        let mut set = |key: &str, value: Option<Value>| {
            if let Some(value) = value {
                arguments[key] = value;
            }
        };
        set("backup-ns", self.namespace.clone().map(Value::from));
        set("fingerprint", self.fingerprint.clone().map(Value::from));
        set("firewall-file", backup.firewall.map(|path| json!(path)));
        set("keyfile", self.key.as_ref().map(|path| json!(path)));
        set("master-keyfile", self.master_key.as_ref().map(|path| json!(path)));
        set("max-workers", knows("backup-max-workers").then(|| backup.max_workers.into()));
        // The bitmap remembers between two backups what changed: only then the next one reads less than everything.
        set("use-dirty-bitmap", (knows("pbs-dirty-bitmap") && !backup.template).then_some(Value::Bool(true)));
        arguments
    }

    /// The client's command line for `verb` with `words`; its secrets go through the environment.
    pub fn client(&self, host: &Host, verb: &[&str], words: &[String]) -> Command {
        let mut command = host.command(CLIENT);
        command.args(verb).args(words).args(["--repository", &self.repository]);
        if let Some(namespace) = &self.namespace {
            command.args(["--ns", namespace]);
        }
        if matches!(verb, ["backup" | "upload-log"]) {
            match &self.key {
                Some(key) => command.args(["--crypt-mode", "encrypt"]).arg("--keyfile").arg(key),
                None => command.args(["--crypt-mode", "none"]),
            };
            if let Some(key) = &self.master_key {
                command.arg("--master-pubkey-file").arg(key);
            }
        }
        command.env("PBS_PASSWORD", &self.password).env("PROXMOX_OUTPUT_NO_BORDER", "1");
        match &self.fingerprint {
            Some(fingerprint) => command.env("PBS_FINGERPRINT", fingerprint),
            None => command.env_remove("PBS_FINGERPRINT"),
        };
        command
    }

    /// The words of `backup` for a VM without disks, which QEMU has nothing to do with.
    pub fn diskless_words(&self, snapshot: &Snapshot, config: &Path, firewall: Option<&Path>) -> Vec<String> {
        let mut words = vec![format!("qemu-server.conf:{}", config.display())];
        words.extend(firewall.map(|path| format!("fw.conf:{}", path.display())));
        words.extend(["--backup-type".into(), "vm".into(), "--backup-id".into(), snapshot.vmid.to_string()]);
        words.extend(["--backup-time".into(), snapshot.time.to_string()]);
        words
    }

    /// The words of `prune` for one group; none when everything is kept.
    pub fn prune_words(snapshot: &Snapshot, keep: &Keep) -> Vec<String> {
        let mut words = vec![snapshot.group()];
        for pair in keep.to_string().split(',') {
            if let Some((key, count)) = pair.split_once('=').filter(|(key, _)| *key != "keep-all") {
                words.extend([format!("--{key}"), count.to_owned()]);
            }
        }
        words.extend(["--output-format".to_owned(), "json".to_owned()]);
        words
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::StorageCfg;

    fn host(files: &[(&str, &str)]) -> (tempfile::TempDir, Host) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("etc/pve/priv/storage")).unwrap();
        for (name, text) in files {
            std::fs::write(dir.path().join("etc/pve/priv/storage").join(name), text).unwrap();
        }
        let host = Host::with_root(dir.path().to_owned());
        (dir, host)
    }

    fn open(host: &Host, properties: &str) -> Result<Repository, PbsError> {
        let cfg = StorageCfg::parse(&format!("pbs: p1\n{properties}"));
        Repository::open(host, cfg.get("p1").unwrap())
    }

    const SMALL: &str = "\tserver 10.0.0.7\n\tdatastore store1\n";

    #[test]
    fn names_of_repositories() {
        let (_dir, host) = host(&[("p1.pw", "secret\nmore")]);
        let name = |properties: &str| open(&host, properties).unwrap().repository;
        assert_eq!(name(SMALL), "root@pam@10.0.0.7:store1");
        let full = "\tserver fd00::7\n\tdatastore s\n\tusername backup@pbs!token\n\tport 8443\n";
        assert_eq!(name(full), "backup@pbs!token@[fd00::7]:8443:s");
        assert_eq!(name(&format!("{SMALL}\tport 8007\n")), "root@pam@10.0.0.7:store1");
    }

    #[test]
    fn what_is_missing_is_named() {
        let (_dir, host) = host(&[]);
        assert_eq!(open(&host, "\tserver x\n").unwrap_err().to_string(), "storage 'p1' has no 'datastore'");
        let text = open(&host, SMALL).unwrap_err().to_string();
        assert!(
            text.starts_with("storage 'p1': password file '/etc/pve/priv/storage/p1.pw' cannot be read: "),
            "{text}"
        );
    }

    #[test]
    fn a_key_that_is_configured_is_never_done_without() {
        let (_dir, host_) = host(&[("p1.pw", "secret")]);
        let text = open(&host_, &format!("{SMALL}\tencryption-key 01:02\n")).unwrap_err().to_string();
        assert!(text.contains("encryption key '/etc/pve/priv/storage/p1.enc'"), "{text}");
        let (_dir, host_) = host(&[("p1.pw", "secret"), ("p1.master.pem", "m")]);
        let alone = open(&host_, &format!("{SMALL}\tmaster-pubkey 1\n")).unwrap_err();
        assert!(matches!(alone, PbsError::MasterAlone(_)), "{alone}");
        // A key file without the word in storage.cfg is used all the same.
        let (_dir, host_) = host(&[("p1.pw", "secret"), ("p1.enc", "k")]);
        assert!(open(&host_, SMALL).unwrap().encrypts());
    }

    #[test]
    fn arguments_for_qemu() {
        let (_dir, host) = host(&[("p1.pw", "secret"), ("p1.enc", "k"), ("p1.master.pem", "m")]);
        let rest = "\tnamespace a/b\n\tfingerprint aa:bb\n\tmaster-pubkey 1\n";
        let repository = open(&host, &format!("{SMALL}{rest}")).unwrap();
        let devices = ["drive-scsi0".to_owned(), "drive-scsi1".to_owned()];
        let backup = QemuBackup {
            snapshot: Snapshot { vmid: 100, time: 1_795_340_120 },
            devices: &devices,
            config: Path::new("/tmp/c"),
            firewall: Some(Path::new("/tmp/f")),
            speed: 1024,
            max_workers: 4,
            template: false,
        };
        assert_eq!(backup.snapshot.to_string(), "vm/100/2026-11-22T09:35:20Z");
        let support = json!({"pbs-dirty-bitmap": true, "backup-max-workers": true});
        let mut wanted = json!({
            "format": "pbs", "backup-file": "root@pam@10.0.0.7:store1", "backup-id": "100", "backup-time": 1_795_340_120,
            "password": "secret", "devlist": "drive-scsi0,drive-scsi1", "config-file": "/tmp/c", "firewall-file": "/tmp/f",
            "encrypt": true, "keyfile": host.path("/etc/pve/priv/storage/p1.enc"), "speed": 1024, "max-workers": 4,
            "master-keyfile": host.path("/etc/pve/priv/storage/p1.master.pem"), "backup-ns": "a/b", "fingerprint": "aa:bb",
            "use-dirty-bitmap": true,
        });
        assert_eq!(repository.qemu_arguments(&backup, &support), wanted);
        // A QEMU that knows neither is not asked for them, and a template is not watched.
        for key in ["max-workers", "use-dirty-bitmap"] {
            wanted.as_object_mut().unwrap().remove(key);
        }
        assert_eq!(repository.qemu_arguments(&backup, &json!({})), wanted);
        let template = QemuBackup { template: true, ..backup };
        assert!(repository.qemu_arguments(&template, &support).get("use-dirty-bitmap").is_none());
    }

    #[test]
    fn the_client_gets_its_secrets_through_the_environment() {
        let (_dir, host) = host(&[("p1.pw", "secret")]);
        let repository = open(&host, &format!("{SMALL}\tnamespace n\n\tfingerprint aa:bb\n")).unwrap();
        let snapshot = Snapshot { vmid: 100, time: 0 };
        let command = repository.client(
            &host,
            &["prune"],
            &Repository::prune_words(&snapshot, &Keep::parse("keep-last=2").unwrap()),
        );
        let words: Vec<_> = command.get_args().map(|word| word.to_str().unwrap()).collect();
        assert_eq!(
            words.join(" "),
            "prune vm/100 --keep-last 2 --output-format json --repository root@pam@10.0.0.7:store1 --ns n"
        );
        let environment: Vec<_> = command.get_envs().filter_map(|(k, v)| Some((k.to_str()?, v?.to_str()?))).collect();
        assert!(
            environment.contains(&("PBS_PASSWORD", "secret")) && environment.contains(&("PBS_FINGERPRINT", "aa:bb"))
        );
    }
}
