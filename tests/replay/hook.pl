#!/usr/bin/perl
# The hook of the recordings: says its phase on both outputs, writes down how it was called and what it found, fails where
# it was told to. Its directory holds the log of calls and the phase to fail in; its environment is empty, so it can
# learn of them in no other way.
use strict;
use warnings;

my ($dir) = $0 =~ m{^(.*)/};
my ($phase, $mode, $vmid) = @ARGV;

sub quoted {
    my ($text) = @_;
    $text =~ s/([\\"])/\\$1/g;
    return "\"$text\"";
}

print STDOUT "HOOK: " . join(' ', @ARGV) . "\n";
print STDERR "HOOK-STDERR: $phase\n";

my $cwd = readlink("/proc/self/cwd");
my @state;
if (defined($vmid)) {
    if (open(my $conf, '<', "$dir/../etc/pve/qemu-server/$vmid.conf")) {
        while (<$conf>) {
            last if /^\[/;
            push @state, "\"lock\":" . quoted($1) if /^lock: (\S+)/;
        }
        close($conf);
    }
    push @state, "\"logfile_exists\":" . (-e $ENV{LOGFILE} ? 1 : 0) if defined($ENV{LOGFILE});
    push @state, "\"target_exists\":" . (-e $ENV{TARGET} ? 1 : 0) if defined($ENV{TARGET});
    push @state, "\"vm_pidfile\":" . (-e "$dir/../run/qemu-server/$vmid.pid" ? 1 : 0);
}
my $env = join(',', map { quoted($_) . ":" . quoted($ENV{$_}) } sort keys %ENV);
open(my $log, '>>', "$dir/hook.jsonl") or die "$dir/hook.jsonl: $!\n";
print $log "{\"argv\":[" . join(',', map { quoted($_) } @ARGV) . "],\"cwd\":" . quoted($cwd)
    . ",\"env\":{$env},\"state\":{" . join(',', @state) . "}}\n";
close($log);

if (open(my $fail, '<', "$dir/hook.fail")) {
    while (<$fail>) {
        my ($where, $code) = split(' ');
        exit($code) if defined($code) && $where eq $phase;
    }
}
exit(0);
