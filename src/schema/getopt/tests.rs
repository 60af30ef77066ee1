//! Our splitting against the original's: Perl's Getopt::Long, set up as the original sets it up.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Command as Process, Stdio};

use super::super::tables::{QMRESTORE, VZDUMP};
use super::super::{Command, Kind};
use super::split;

/// Reads one command line after another, its words in hexadecimal, and answers each with what Getopt::Long made of it.
const PERL: &str = r#"
use strict;
use warnings;
use Getopt::Long qw(GetOptionsFromArray);
Getopt::Long::Configure('prefix_pattern=(--|-)');
my @specs = @ARGV;
sub hex_of { return '=' . unpack('H*', $_[0]); }
while (my $line = <STDIN>) {
    my @argv = map { pack('H*', substr($_, 1)) } split(' ', $line);
    my (%options, @warnings);
    local $SIG{__WARN__} = sub { push @warnings, $_[0] };
    GetOptionsFromArray(\@argv, \%options, @specs);
    my @said = map { "warning " . hex_of($_) } @warnings;
    if (!@said) {
        for my $name (sort keys %options) {
            my $value = $options{$name};
            push @said, join(' ', $name, map { hex_of($_) } ref($value) ? @$value : $value);
        }
        push @said, join(' ', 'words', map { hex_of($_) } @argv);
    }
    print join(';', @said), "\n";
}
"#;

fn hex(text: &str) -> String {
    "=".chars().chain(text.bytes().flat_map(|b| format!("{b:02x}").chars().collect::<Vec<_>>())).collect()
}

/// What Getopt::Long makes of each line; nothing where perl is missing.
fn perl(command: &'static Command, lines: &[Vec<String>]) -> Option<Vec<String>> {
    let specs = command.options.iter().map(|opt| match opt.kind {
        Kind::Bool => format!("{}:s", opt.name),
        Kind::Array | Kind::List(_) => format!("{}=s@", opt.name),
        _ => format!("{}=s", opt.name),
    });
    let child =
        Process::new("perl").args(["-e", PERL]).args(specs).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let Ok(mut child) = child else {
        assert!(std::env::var_os("CI").is_none(), "perl is missing");
        println!("SKIPPED: perl missing");
        return None;
    };
    let input: String =
        lines.iter().map(|words| words.iter().map(|w| hex(w)).collect::<Vec<_>>().join(" ") + "\n").collect();
    let mut stdin = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert!(output.status.success());
    Some(String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect())
}

/// The same of our own.
fn ours(command: &'static Command, words: &[String]) -> String {
    let found = split(command, words);
    let mut said: Vec<String> =
        found.complaints.iter().map(|line| format!("warning {}", hex(&format!("{line}\n")))).collect();
    if said.is_empty() {
        let mut options: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for (opt, value) in &found.options {
            let values = options.entry(opt.name).or_default();
            if !matches!(opt.kind, Kind::Array | Kind::List(_)) {
                values.clear();
            }
            values.push(hex(value));
        }
        said = options.iter().map(|(name, values)| format!("{name} {}", values.join(" "))).collect();
        let words = found.words.iter().map(|word| format!(" {}", hex(word)));
        said.push(format!("words{}", words.collect::<String>()));
    }
    said.join(";")
}

fn compare(command: &'static Command, lines: &[Vec<String>]) {
    let Some(theirs) = perl(command, lines) else { return };
    assert_eq!(theirs.len(), lines.len());
    for (line, theirs) in lines.iter().zip(theirs) {
        assert_eq!(ours(command, line), theirs, "{line:?}");
    }
}

#[test]
fn splits_like_getopt_long() {
    let lines: &[&[&str]] = &[
        &["100", "--mode", "stop"],
        &["-mode", "stop", "--mode=suspend", "--MODE", "snapshot", "-Mode=x"],
        &["--st", "x"],
        &["--sto", "bk"],
        &["--stor", "bk", "--comp", "zstd"],
        &["--stop", "--stopwait", "3"],
        &["--stop", "102"],
        &["--stop", "-"],
        &["--stop", ""],
        &["--stop="],
        &["--stop=yes", "--stop", "no"],
        &["--stop", "--", "102"],
        &["--stop", "-\nx"],
        &["--stop", "--\n"],
        &["-"],
        &["--", "-mode", "--x"],
        &["--bwlimit", "-1"],
        &["--bwlimit=-1"],
        &["--bwlimit", "--storage", "bk"],
        &["--bwlimit", "--", "bk"],
        &["--noall"],
        &["--no"],
        &["--no-quiet", "1"],
        &["--zstd", "1", "--zstd", "2"],
        &["--exclude-path", "a", "--exclude-path", "b", "--exclude-path=c d"],
        &["--mailto", "a", "--mailto", "b,c"],
        &["--storage"],
        &["--stor"],
        &["--storage="],
        &["--storage", ""],
        &["--storage", "a\nb"],
        &["--storage=a\nb=c"],
        &["--=x"],
        &["--==x"],
        &["-=", "--="],
        &["---mode", "stop"],
        &["--foo", "bar", "--FOO=x"],
        &["--help", "-?", "-h"],
        &["--exclude", "1", "--exclude-pat", "2", "--exclude-", "3", "--exclud", "4"],
        &["--Ä", "--äll"],
        &["--prune-backups", "keep-last=1", "--prune=keep-all=1"],
        &["", "100", "--all", "0", "x"],
        &["+mode", "stop"],
        &["--all\n", "1"],
        &["--all=\n"],
    ];
    let lines: Vec<Vec<String>> = lines.iter().map(|line| line.iter().map(|&w| w.to_owned()).collect()).collect();
    compare(&VZDUMP, &lines);
    compare(&QMRESTORE, &lines);
}

/// The same for thousands of lines thrown together from pieces, always the same ones.
#[test]
fn splits_random_lines_like_getopt_long() {
    let tails = ["", "=", "=1", "=no", "=-x", "=a=b", "\n", "-"];
    let values = ["1", "no", "-1", "-", "--", "", "a b", "x=y", "-\n", "\n", "é", "keep-last=1,keep-daily=2"];
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    let mut pick = move |below: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        usize::try_from(seed >> 33).unwrap() % below
    };
    for command in [&VZDUMP, &QMRESTORE] {
        let mut word = || {
            if pick(3) == 0 {
                return values[pick(values.len())].to_owned();
            }
            let name = command.options[pick(command.options.len())].name;
            let part = &name[..if pick(2) == 0 { name.len() } else { pick(name.len() + 1) }];
            let part = if pick(4) == 0 { part.to_uppercase() } else { part.to_owned() };
            let tail = if pick(3) == 0 { tails[pick(tails.len())] } else { "" };
            format!("{}{part}{tail}", ["-", "--", "--", "---"][pick(4)])
        };
        let lines: Vec<Vec<String>> = (0..3000).map(|n| (0..1 + n % 6).map(|_| word()).collect()).collect();
        compare(command, &lines);
    }
}
