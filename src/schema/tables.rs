//! The tables: every option of every command line. Names, defaults, ranges and words are the ones administrators know;
//! `golden/vzdump/44-help` holds them all.

use super::Format::{Any, Archive, ContainerArchive, Directory, File, Lines, Mail, Node, Pool, StorageId, Token, Vmid};
use super::Kind::{Array, Bool, Enum, Integer, List, Number, Property, Text};
use super::{Command, Kind, Opt, Positional, PropertyString};

const INTEGER: Kind = Integer { min: None, max: None };
const FROM_ZERO: Kind = Integer { min: Some(0), max: None };

/// PATH_MAX of Linux.
const LONGEST_PATH: usize = 4096;

const fn keep(name: &'static str, description: &'static str) -> Opt {
    Opt::new(name, FROM_ZERO, description).typetext("<N>")
}

/// Retention: `keep-last=3,keep-daily=13`.
pub static PRUNE_BACKUPS: PropertyString = PropertyString {
    default_key: None,
    keys: &[
        Opt::new("keep-all", Bool, "Keep all backups. Conflicts with the other options when true."),
        keep("keep-daily", "Keep backups for the last <N> different days."),
        keep("keep-hourly", "Keep backups for the last <N> different hours."),
        keep("keep-last", "Keep the last <N> backups."),
        keep("keep-monthly", "Keep backups for the last <N> different months."),
        keep("keep-weekly", "Keep backups for the last <N> different weeks."),
        keep("keep-yearly", "Keep backups for the last <N> different years."),
    ],
    check: Some(|given| {
        let others = given.iter().any(|(key, value)| key != "keep-all" && value != "0");
        if given.flag("keep-all") && others {
            return Err("keep-all cannot be set together with other options.".into());
        }
        Ok(())
    }),
};

/// Fleecing: where the guest's overwritten blocks go while the backup runs.
pub static FLEECING: PropertyString = PropertyString {
    default_key: Some("enabled"),
    keys: &[
        Opt::new("enabled", Bool, "Enable backup fleecing.").default("0"),
        Opt::new("storage", Text(StorageId), "Use this storage to store the fleecing images."),
    ],
    check: Some(|given| {
        if given.flag("enabled") && given.get("storage").is_none() {
            return Err("'storage' parameter is required when 'enabled' is set".into());
        }
        Ok(())
    }),
};

/// Settings for speed.
pub static PERFORMANCE: PropertyString = PropertyString {
    default_key: None,
    keys: &[
        Opt::new(
            "max-workers",
            Integer { min: Some(1), max: Some(256) },
            "Allow up to this many workers at the same time.",
        )
        .default("16"),
        Opt::new(
            "pbs-entries-max",
            Integer { min: Some(1), max: None },
            "Limits the number of entries held in memory.",
        )
        .default("1048576"),
    ],
    check: None,
};

static VZDUMP_VMID: Opt = Opt::new("vmid", List(Vmid), "The ID of the guest system you want to backup.");

/// `vzdump`.
pub static VZDUMP: Command = Command {
    name: "vzdump",
    summary: "Create backup.",
    manual: (include_str!("man/vzdump_before.roff"), include_str!("man/vzdump_after.roff")),
    positional: Positional::Rest(&VZDUMP_VMID),
    options: &[
        Opt::new("all", Bool, "Backup all known guest systems on this host.").default("0"),
        Opt::new("bwlimit", FROM_ZERO, "Limit I/O bandwidth (in KiB/s).").default("0"),
        Opt::new("compress", Enum(&["0", "1", "gzip", "lzo", "zstd"]), "Compress dump file.").default("0"),
        Opt::new("dumpdir", Text(Directory), "Store resulting files to specified directory.").max_length(LONGEST_PATH),
        Opt::new("exclude", List(Vmid), "Exclude specified guest systems (assumes --all)"),
        Opt::new(
            "exclude-path",
            Array,
            "Exclude certain files/directories (shell globs). Paths starting with '/' are anchored to the container's \
             root, other paths match relative to each subdirectory.",
        ),
        Opt::new("fleecing", Property(&FLEECING), "Options for backup fleecing (VM only)."),
        Opt::new(
            "ionice",
            Integer { min: Some(0), max: Some(8) },
            "Set IO priority when using the BFQ scheduler. For snapshot and suspend mode backups of VMs, this only \
             affects the compressor. A value of 8 means the idle priority is used, otherwise the best-effort priority \
             is used with the specified value.",
        )
        .default("7"),
        Opt::new(
            "job-id",
            Text(Token),
            "The ID of the backup job. If set, the 'backup-job' metadata field of the backup notification will be set \
             to this value. Only root@pam can set this parameter.",
        )
        .typetext("\\S+")
        .max_length(256),
        Opt::new("lockwait", FROM_ZERO, "Maximal time to wait for the global lock (minutes).").default("180"),
        Opt::new("mailnotification", Enum(&["always", "failure"]), "Specify when to send a notification mail")
            .deprecated("use notification targets/matchers instead.")
            .default("always"),
        Opt::new(
            "mailto",
            List(Mail),
            "Comma-separated list of email addresses or users that should receive email notifications.",
        )
        .deprecated("Use notification targets/matchers instead."),
        Opt::new("mode", Enum(&["snapshot", "suspend", "stop"]), "Backup mode.").default("snapshot"),
        Opt::new("node", Text(Node), "Only run if executed on this node."),
        Opt::new(
            "notes-template",
            Text(Any),
            "Template string for generating notes for the backup(s). It can contain variables which will be replaced \
             by their values. Currently supported are {{cluster}}, {{guestname}}, {{node}}, and {{vmid}}, but more \
             might be added in the future. Needs to be a single line, newline and backslash need to be escaped as \
             '\\n' and '\\\\' respectively.",
        )
        .max_length(1024)
        .requires("storage"),
        Opt::new(
            "notification-mode",
            Enum(&["auto", "legacy-sendmail", "notification-system"]),
            "Determine which notification system to use. If set to 'legacy-sendmail', vzdump will consider the \
             mailto/mailnotification parameters and send emails to the specified address(es) via the 'sendmail' \
             command. If set to 'notification-system', a notification will be sent via PVE's notification system, and \
             the mailto and mailnotification will be ignored. If set to 'auto' (default setting), an email will be \
             sent if mailto is set, and the notification system will be used if not.",
        )
        .default("auto"),
        Opt::new(
            "pbs-change-detection-mode",
            Enum(&["legacy", "data", "metadata"]),
            "PBS mode used to detect file changes and switch encoding format for container backups.",
        ),
        Opt::new("performance", Property(&PERFORMANCE), "Other performance-related settings."),
        Opt::new(
            "pigz",
            INTEGER,
            "Use pigz instead of gzip when N>0. N=1 uses half of cores, N>1 uses N as thread count.",
        )
        .default("0"),
        Opt::new("pool", Text(Pool), "Backup all known guest systems included in the specified pool."),
        Opt::new("protected", Bool, "If true, mark backup(s) as protected.").requires("storage"),
        Opt::new(
            "prune-backups",
            Property(&PRUNE_BACKUPS),
            "Use these retention options instead of those from the storage configuration.",
        )
        .default("keep-all=1"),
        Opt::new("quiet", Bool, "Be quiet.").default("0"),
        Opt::new("remove", Bool, "Prune older backups according to 'prune-backups'.").default("1"),
        Opt::new("script", Text(File), "Use specified hook script.").max_length(LONGEST_PATH),
        Opt::new("stdexcludes", Bool, "Exclude temporary files and logs.").default("1"),
        Opt::new("stdout", Bool, "Write tar to stdout, not to a file."),
        Opt::new("stop", Bool, "Stop running backup jobs on this host.").default("0"),
        Opt::new("stopwait", FROM_ZERO, "Maximal time to wait until a guest system is stopped (minutes).")
            .default("10"),
        Opt::new("storage", Text(StorageId), "Store resulting file to this storage."),
        Opt::new("tmpdir", Text(Directory), "Store temporary files to specified directory.").max_length(LONGEST_PATH),
        Opt::new(
            "zstd",
            INTEGER,
            "Zstd threads. N=0 uses half of the available cores, if N is set to a value bigger than 0, N is used as \
             thread count.",
        )
        .default("1"),
    ],
};

/// `qmrestore`.
pub static QMRESTORE: Command = Command {
    name: "qmrestore",
    summary: "Restore QemuServer vzdump backups.",
    manual: (include_str!("man/qmrestore_before.roff"), include_str!("man/qmrestore_after.roff")),
    positional: Positional::Words(&[
        Opt::new("archive", Text(Archive), "The backup file. You can pass '-' to read from standard input.")
            .max_length(255),
        Opt::new("vmid", Text(Vmid), "The (unique) ID of the VM.").typetext("<integer> (100 - 999999999)"),
    ]),
    options: &[
        Opt::new("bwlimit", Number, "Override I/O bandwidth limit (in KiB/s)."),
        Opt::new("force", Bool, "Allow to overwrite existing VM."),
        Opt::new("live-restore", Bool, "Start the VM immediately from the backup and restore in background."),
        Opt::new("pool", Text(Pool), "Add the VM to the specified pool."),
        Opt::new("start", Bool, "Start VM after it was restored successfully.").default("0"),
        Opt::new("storage", Text(StorageId), "Default storage."),
        Opt::new("unique", Bool, "Assign a unique random ethernet address."),
    ],
};

/// `pct restore`. Options with `[n]` in their name are given with a number: `--mp0`.
pub static PCT_RESTORE: Command = Command {
    name: "pct-restore",
    summary: "Create or restore a container.",
    manual: (include_str!("man/pct_restore_before.roff"), include_str!("man/pct_restore_after.roff")),
    positional: Positional::Words(&[
        Opt::new("vmid", Text(Vmid), "The (unique) ID of the VM.").typetext("<integer> (100 - 999999999)"),
        Opt::new("ostemplate", Text(ContainerArchive), "The backup file. You can pass '-' to read from standard input.")
            .max_length(255),
    ]),
    options: &[
        Opt::new("arch", Enum(&["amd64", "i386", "arm64", "armhf", "riscv32", "riscv64"]), "OS architecture type."),
        Opt::new("bwlimit", Number, "Override I/O bandwidth limit (in KiB/s)."),
        Opt::new(
            "cmode",
            Enum(&["shell", "console", "tty"]),
            "Console mode. By default, the console command tries to open a connection to one of the available tty devices.",
        ),
        Opt::new("console", Bool, "Attach a console device (/dev/console) to the container."),
        Opt::new("cores", Integer { min: Some(1), max: Some(8192) }, "The number of cores assigned to the container."),
        Opt::new("cpulimit", Number, "Limit of CPU usage."),
        Opt::new("cpuunits", Integer { min: Some(0), max: Some(500_000) }, "CPU weight for a container."),
        Opt::new("debug", Bool, "Try to be more verbose. For now this only enables debug log-level on start."),
        Opt::new("description", Text(Lines), "Description for the Container.").max_length(8192),
        Opt::new("dev[n]", Array, "Device to pass through to the container.").typetext("<string>"),
        Opt::new("features", Text(Any), "Allow containers access to advanced features."),
        Opt::new("force", Bool, "Allow to overwrite existing container."),
        Opt::new("hookscript", Text(Any), "Script that will be executed during various steps in the container's lifetime."),
        Opt::new("hostname", Text(Any), "Set a host name for the container.").max_length(255),
        Opt::new("ignore-unpack-errors", Bool, "Ignore errors when extracting the template."),
        Opt::new("memory", Integer { min: Some(16), max: None }, "Amount of RAM for the container in MB."),
        Opt::new(
            "mp[n]",
            Array,
            "Use volume as container mount point. Use the special syntax STORAGE_ID:SIZE_IN_GiB to allocate a new volume.",
        )
        .typetext("[volume=]<volume> ,mp=<Path> [,acl=<1|0>] [,backup=<1|0>] [,mountoptions=<opt[;opt...]>] [,quota=<1|0>] \
             [,replicate=<1|0>] [,ro=<1|0>] [,shared=<1|0>] [,size=<DiskSize>]"),
        Opt::new("nameserver", Text(Any), "Sets DNS server IP address for a container."),
        Opt::new("net[n]", Array, "Specifies network interfaces for the container.").typetext("<string>"),
        Opt::new("onboot", Bool, "Specifies whether a container will be started during system bootup."),
        Opt::new("ostype", Text(Token), "OS type. This is used to setup configuration inside the container."),
        Opt::new("pool", Text(Pool), "Add the VM to the specified pool."),
        Opt::new("protection", Bool, "Sets the protection flag of the container."),
        Opt::new("rootfs", Text(Any), "Use volume as container root.")
            .typetext("[volume=]<volume> [,acl=<1|0>] [,mountoptions=<opt[;opt...]>] [,quota=<1|0>] [,replicate=<1|0>] \
             [,ro=<1|0>] [,shared=<1|0>] [,size=<DiskSize>]"),
        Opt::new("searchdomain", Text(Any), "Sets DNS search domains for a container."),
        Opt::new("start", Bool, "Start the CT after its creation finished successfully.").default("0"),
        Opt::new("startup", Text(Any), "Startup and shutdown behavior."),
        Opt::new("storage", Text(StorageId), "Default Storage.").default("local"),
        Opt::new("swap", FROM_ZERO, "Amount of SWAP for the container in MB."),
        Opt::new("tags", Text(Any), "Tags of the Container. This is only meta information."),
        Opt::new("timezone", Text(Any), "Time zone to use in the container."),
        Opt::new("tty", Integer { min: Some(0), max: Some(6) }, "Specify the number of tty available to the container"),
        Opt::new("unique", Bool, "Assign a unique random ethernet address."),
        Opt::new("unprivileged", Bool, "Makes the container run as unprivileged user."),
    ],
};
