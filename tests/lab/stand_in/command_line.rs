//! The QEMU command line of a guest's config, with the node names and sockets a node gives it.

use super::live::Live;
use super::{GuestConfig, Machine, Storages};
use anyhow::Result;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::fmt::Write;
use std::path::Path;

/// What a guest with `bios: ovmf` gets as its firmware: flash beside the EFI disk, which is all that matters here, but one
/// that boots as the other guests do. Part of every QEMU for PCs.
const FIRMWARE: &str = "/usr/share/seabios/bios-256k.bin";

/// The words of the command line, program first. Disks of `live` get what makes them show the archive.
///
/// # Errors
/// When the config names unknown storages or malformed devices.
pub fn build(machine: &Machine, vmid: u32, guest: &GuestConfig, live: Option<&Live>) -> Result<Vec<String>> {
    let storages = Storages::load(machine)?;
    let name = guest.get("name").map_or_else(|| format!("VM{vmid}"), str::to_owned);
    let file = |extension: &str| machine.run_file(vmid, extension).display().to_string();
    let mut words: Vec<String> = vec!["qemu-system-x86_64".into()];
    let mut add = |option: &str, value: String| words.extend([format!("-{option}"), value]);
    add("name", format!("{name},debug-threads=on"));
    add("chardev", format!("socket,id=qmp,path={},server=on,wait=off", file("qmp")));
    add("mon", "chardev=qmp,mode=control".into());
    add("pidfile", file("pid"));
    if let Some(smbios) = guest.get("smbios1") {
        add("smbios", format!("type=1,{smbios}"));
    }
    add("smp", format!("{},sockets=1,cores={0},maxcpus={0}", guest.get("cores").unwrap_or("1")));
    add("cpu", guest.get("cpu").unwrap_or("qemu64").into());
    add("m", guest.get("memory").unwrap_or("128").into());
    add("global", "PIIX4_PM.disable_s3=1".into());
    add("global", "PIIX4_PM.disable_s4=1".into());
    let flash = guest.get("bios") == Some("ovmf") && guest.get("efidisk0").is_some() && Path::new(FIRMWARE).exists();
    if flash {
        let firmware = json!({
            "driver": "raw", "node-name": "pflash0", "read-only": true,
            "file": {"driver": "file", "filename": FIRMWARE, "read-only": true},
        });
        add("blockdev", firmware.to_string());
        add("machine", "accel=tcg,smm=off,type=pc,pflash0=pflash0,pflash1=drive-efidisk0".into());
    } else {
        add("machine", "accel=tcg,smm=off,type=pc".into());
    }
    if guest.get("serial0") == Some("socket") {
        add("chardev", format!("socket,id=serial0,path={},server=on,wait=off", file("serial0")));
        add("device", "isa-serial,chardev=serial0".into());
    }
    if guest.get("agent").is_some_and(|value| enabled(value, "enabled")) {
        add("chardev", format!("socket,path={},server=on,wait=off,id=qga0", file("qga")));
        add("device", "virtio-serial,id=qga0,bus=pci.0".into());
        add("device", "virtserialport,chardev=qga0,name=org.qemu.guest_agent.0".into());
    }
    let single = guest.get("scsihw") == Some("virtio-scsi-single");
    let mut shared_controller = false;
    for (key, value) in guest.entries() {
        let Some((bus, index)) = disk_key(key) else { continue };
        let (volid, properties) = value.split_once(',').unwrap_or((value, ""));
        if properties.split(',').any(|property| property == "media=cdrom") {
            let (bus, unit) = (index / 2, index % 2);
            add("device", format!("ide-cd,bus=ide.{bus},unit={unit},id={key}"));
            continue;
        }
        let volume = storages.volume(volid.trim_start_matches("file="))?;
        let drive = format!("drive-{key}");
        // A node gives efidisk no throttle and swtpm, not QEMU, the TPM state.
        let throttled = bus != "efidisk";
        let path = volume.path.display().to_string();
        if throttled {
            add(
                "object",
                json!({"id": format!("throttle-{drive}"), "limits": {}, "qom-type": "throttle-group"}).to_string(),
            );
        }
        let blockdev = blockdev(&drive, &path, &volume.format, throttled);
        let source = live.and_then(|live| live.disk(key));
        match source {
            Some(source) => source.nodes(blockdev).into_iter().for_each(|node| add("blockdev", node.to_string())),
            None => add("blockdev", blockdev.to_string()),
        }
        // The guest is to notice nothing: it stands still and is ended.
        let errors = if source.is_some() { ",rerror=stop,werror=stop" } else { "" };
        let iothread = enabled(properties, "iothread");
        if iothread && bus == "virtio" {
            add("object", format!("iothread,id=iothread-{key}"));
        }
        match bus {
            "scsi" => {
                let controller = if single { format!("virtioscsi{index}") } else { "scsihw0".to_owned() };
                if single || !shared_controller {
                    let mut device = format!("virtio-scsi-pci,id={controller},bus=pci.0");
                    if iothread && single {
                        add("object", format!("iothread,id=iothread-{controller}"));
                        write!(device, ",iothread=iothread-{controller}")?;
                    }
                    add("device", device);
                    shared_controller = true;
                }
                let lun = if single { format!("scsi-id=0,lun={index}") } else { format!("scsi-id={index},lun=0") };
                add(
                    "device",
                    format!(
                        "scsi-hd,bus={controller}.0,channel=0,{lun},drive={drive},id={key},device_id={drive},write-cache=on{errors}"
                    ),
                );
            }
            "virtio" => {
                let thread = if iothread { format!(",iothread=iothread-{key}") } else { String::new() };
                add(
                    "device",
                    format!("virtio-blk-pci,drive={drive},id={key},bus=pci.0{thread},write-cache=on{errors}"),
                );
            }
            "ide" => {
                let (bus, unit) = (index / 2, index % 2);
                add(
                    "device",
                    format!("ide-hd,bus=ide.{bus},unit={unit},drive={drive},id={key},write-cache=on{errors}"),
                );
            }
            _ => {}
        }
    }
    words.extend(["-no-shutdown", "-daemonize", "-nodefaults", "-nographic"].map(str::to_owned));
    for word in split_words(guest.get("args").unwrap_or_default()) {
        let below = machine.path(&word);
        words.push(if word.starts_with('/') && below.exists() { below.display().to_string() } else { word });
    }
    Ok(words)
}

/// `scsi0` is bus `scsi`, number 0. TPM state and unused disks are no devices of QEMU.
fn disk_key(key: &str) -> Option<(&str, u32)> {
    let bus = key.trim_end_matches(|c: char| c.is_ascii_digit());
    let index = key.strip_prefix(bus)?.parse().ok()?;
    matches!(bus, "scsi" | "virtio" | "ide" | "efidisk").then_some((bus, index))
}

fn enabled(properties: &str, name: &str) -> bool {
    properties.split(',').enumerate().any(|(i, property)| match property.split_once('=') {
        Some((key, value)) => key == name && matches!(value, "1" | "on" | "yes" | "true"),
        None => i == 0 && name == "enabled" && property == "1",
    })
}

fn blockdev(drive: &str, path: &str, format: &str, throttled: bool) -> Value {
    let digest = Sha256::digest(format!("{drive} {path}"));
    let mut hash = digest.iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"));
    hash.truncate(30);
    let cache = json!({"direct": false, "no-flush": false});
    let mut file = json!({
        "driver": "file", "filename": path, "aio": "threads", "cache": cache, "detect-zeroes": "on",
        "discard": "ignore", "node-name": format!("e{hash}"), "read-only": false,
    });
    if let Some(offset) = bad_sector(path) {
        let fails = json!({"event": "none", "iotype": "read", "errno": 5, "sector": offset / 512, "once": false});
        file = json!({"driver": "blkdebug", "image": file, "inject-error": [fails], "node-name": format!("b{hash}")});
    }
    let node = if throttled { format!("f{hash}") } else { drive.to_owned() };
    let image = json!({
        "driver": format, "file": file, "cache": cache, "detect-zeroes": "on", "discard": "ignore",
        "node-name": node, "read-only": false,
    });
    if !throttled {
        return image;
    }
    json!({
        "driver": "throttle", "file": image, "detect-zeroes": "on", "discard": "ignore", "node-name": drive,
        "read-only": false, "throttle-group": format!("throttle-{drive}"),
    })
}

/// A test asks for a disk with a sector that cannot be read by a file `<image>.bad-sector` with its byte offset.
fn bad_sector(path: &str) -> Option<u64> {
    std::fs::read_to_string(format!("{path}.bad-sector")).ok()?.trim().parse().ok()
}

/// Splits as a shell does, with single and double quotes.
fn split_words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for c in line.chars() {
        match quote {
            Some(open) if c == open => quote = None,
            None if c == '\'' || c == '"' => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            None if c.is_whitespace() => words.extend(word.take()),
            _ => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}
