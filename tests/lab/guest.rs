//! A guest's config, built word by word.

use std::fmt::Write;

/// Format of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// A plain file.
    Raw,
    /// QEMU's own.
    Qcow2,
}

impl Format {
    /// As it is spelled in file names.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}

/// `n` KiB in bytes.
pub const fn kib(n: u64) -> u64 {
    n << 10
}

/// `n` MiB in bytes.
pub const fn mib(n: u64) -> u64 {
    n << 20
}

/// `n` GiB in bytes.
pub const fn gib(n: u64) -> u64 {
    n << 30
}

#[derive(Debug, Clone)]
pub(super) struct Disk {
    pub key: String,
    pub storage: String,
    pub format: Format,
    pub bytes: u64,
    pub properties: String,
}

/// A virtual machine to be: `Guest::new(100).name("web01").disk("scsi0", Qcow2, mib(64)).disk("virtio0", Raw, mib(64))`.
/// It boots the witness, which writes to all its disks.
#[derive(Debug, Clone)]
pub struct Guest {
    pub(super) vmid: u32,
    pub(super) disks: Vec<Disk>,
    lines: Vec<(String, String)>,
    image: &'static str,
    words: String,
}

impl Guest {
    /// Guest `vmid` without disks, with 128 MiB of memory and one processor.
    pub fn new(vmid: u32) -> Self {
        Self { vmid, disks: Vec::new(), lines: Vec::new(), image: "guest.img", words: "witness".to_owned() }
    }

    /// Sets the name.
    pub fn name(self, name: &str) -> Self {
        self.line("name", name)
    }

    /// Adds or replaces a line of the config: `.line("ostype", "l26")`.
    pub fn line(mut self, key: &str, value: &str) -> Self {
        self.lines.retain(|(known, _)| known != key);
        self.lines.push((key.to_owned(), value.to_owned()));
        self
    }

    /// Adds a disk on storage `local`; `key` is `scsi0`, `virtio1`, `efidisk0`, `tpmstate0`.
    pub fn disk(self, key: &str, format: Format, bytes: u64) -> Self {
        self.disk_on("local", key, format, bytes, "")
    }

    /// Adds a disk on a storage with further properties: `backup=0,iothread=1`.
    pub fn disk_on(mut self, storage: &str, key: &str, format: Format, bytes: u64, properties: &str) -> Self {
        self.disks.push(Disk {
            key: key.to_owned(),
            storage: storage.to_owned(),
            format,
            bytes,
            properties: properties.to_owned(),
        });
        self
    }

    /// Adds properties to the disk added last.
    pub fn with(mut self, properties: &str) -> Self {
        if let Some(disk) = self.disks.last_mut() {
            let comma = if disk.properties.is_empty() { "" } else { "," };
            disk.properties = format!("{}{comma}{properties}", disk.properties);
        }
        self
    }

    /// Runs the real guest agent; the first disk carries an ext4 file system with files being written, the others
    /// records as ever.
    pub fn with_agent(mut self) -> Self {
        self.image = "agent.img";
        self.words = "agent".to_owned();
        self.line("agent", "1").line("memory", "256")
    }

    /// Adds the guest to a node that exists already: makes its disks and writes its config.
    ///
    /// # Errors
    /// When a disk cannot be made.
    pub fn add_to(&self, node: &super::Node) -> anyhow::Result<()> {
        node.make(self)
    }

    /// The config file, with `volids` in the order of the disks.
    pub(super) fn config(&self, volids: &[String]) -> String {
        let boot =
            self.disks.iter().map(|disk| disk.key.as_str()).find(|key| !key.contains("efi") && !key.contains("tpm"));
        let args = format!(
            "-kernel /boot/vmlinuz -initrd /boot/{} -append 'console=ttyS0 quiet mitigations=off edd=off nosmp nokaslr apparmor=0 audit=0 panic=-1 {}'",
            self.image, self.words
        );
        let mut lines: Vec<(String, String)> = [
            ("args", args),
            ("boot", boot.map(|key| format!("order={key}")).unwrap_or_default()),
            ("cores", "1".to_owned()),
            ("cpu", "qemu64".to_owned()),
            ("kvm", "0".to_owned()),
            ("memory", "128".to_owned()),
            ("meta", "creation-qemu=10.0.2,ctime=1795341145".to_owned()),
            ("ostype", "l26".to_owned()),
            ("scsihw", "virtio-scsi-single".to_owned()),
            ("serial0", "socket".to_owned()),
            ("smbios1", format!("uuid=00000000-0000-4000-8000-{:012}", self.vmid)),
            ("vga", "serial0".to_owned()),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .to_vec();
        for (disk, volid) in self.disks.iter().zip(volids) {
            let comma = if disk.properties.is_empty() { "" } else { "," };
            lines.push((disk.key.clone(), format!("{volid}{comma}{},size={}", disk.properties, size(disk.bytes))));
        }
        lines.retain(|(key, _)| !self.lines.iter().any(|(own, _)| own == key));
        lines.extend(self.lines.clone());
        lines.sort();
        lines.iter().fold(String::new(), |mut text, (key, value)| {
            writeln!(text, "{key}: {value}").ok();
            text
        })
    }
}

/// As PVE writes sizes: the largest unit that divides it.
pub(super) fn size(bytes: u64) -> String {
    let units = [(30, "G"), (20, "M"), (10, "K")];
    let fitting = units.iter().find(|(shift, _)| bytes > 0 && bytes.trailing_zeros() >= *shift);
    fitting.map_or_else(|| bytes.to_string(), |(shift, unit)| format!("{}{unit}", bytes >> shift))
}

/// The other way round: `256M` in bytes.
pub(super) fn bytes(size: &str) -> anyhow::Result<u64> {
    let shift = match size.chars().last() {
        Some('K') => 10,
        Some('M') => 20,
        Some('G') => 30,
        _ => 0,
    };
    Ok(size.trim_end_matches(char::is_alphabetic).parse::<u64>()? << shift)
}
