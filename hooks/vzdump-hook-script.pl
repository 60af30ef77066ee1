#!/usr/bin/perl
# A hook script to start from: says what it was called for and what it was told, and has a place for your own code in every
# phase. Use it with `--script /usr/local/lib/vzdump-hook-script.pl`, or `script: ...` in /etc/vzdump.conf.
#
# What each phase may and may not do is told in README.md beside this file.
use strict;
use warnings;

# Standard output and error become lines of the backup's log; without this they would change places.
$| = 1;

# The environment is empty but for the documented variables: commands are not found without a PATH.
$ENV{PATH} = '/usr/sbin:/usr/bin:/sbin:/bin' if !defined($ENV{PATH});

# Phases of the whole job are called with the phase alone, those of a guest with its mode and its number.
my ($phase, $mode, $vmid) = @ARGV;
die "usage: $0 <phase> [<mode> <vmid>]\n" if !defined($phase);

my @variables = qw(STOREID DUMPDIR VMTYPE HOSTNAME TARGET LOGFILE);
my @told = map { "$_=$ENV{$_}" } grep { defined($ENV{$_}) } @variables;
print join(' ', 'HOOK:', @ARGV, @told), "\n";

# A phase that is not listed is let pass: a newer version may have more of them.
my %code = (
    # Before any lock, and before the storage is looked at: mount it here. DUMPDIR is not known yet with a storage.
    'job-init' => sub { },
    # The job has begun. Wake a backup server, tell a monitoring system.
    'job-start' => sub { },
    # The job has ended; single guests may have failed.
    'job-end' => sub { },
    # The job was interrupted or could not go on. Only a warning comes of a failure here.
    'job-abort' => sub { },

    # The guest is locked. Fail here, and it is not backed up.
    'backup-start' => sub { },
    # Just before the guest is stopped or suspended; in snapshot mode just before the instant.
    'pre-stop' => sub { },
    # Before and after the guest runs again. In snapshot mode both come before the archive is written.
    'pre-restart' => sub { },
    'post-restart' => sub { },
    # The archive $ENV{TARGET} is complete, and the guest is still locked. Copy it away here.
    'backup-end' => sub { },
    # The backup of this guest failed. Only a warning comes of a failure here.
    'backup-abort' => sub { },
    # The log $ENV{LOGFILE} is complete, and the guest is not locked any more.
    'log-end' => sub { },
);

# Whoever dies here fails the phase; the message is in the log.
$code{$phase}->() if $code{$phase};
exit(0);
