# Runs inside a container. Looks at every process that enters it, as long as it has not become its
# program, and tells what of the host it can reach through it (CVE-2016-9962).
use strict;
$| = 1;
my $deadline = time + 60;
my $hidden = 0;
until (-e '/stop' || time > $deadline) {
    opendir my $proc, '/proc' or die "proc: $!";
    for my $pid (grep /^\d+$/, readdir $proc) {
        my $exe = readlink "/proc/$pid/exe";
        $hidden++ if !defined $exe && $!{EACCES};
        print "exe $exe\n" if defined $exe && $exe =~ /xebec/;
        print "root\n" if -e "/proc/$pid/root/etc/host-marker";
        print "cwd\n" if -e "/proc/$pid/cwd/etc/host-marker";
        next unless opendir my $fds, "/proc/$pid/fd";
        for my $fd (grep /^\d+$/, readdir $fds) {
            my $target = readlink "/proc/$pid/fd/$fd";
            print "fd $target\n" if defined $target && $target =~ m{^/(run|sys|root|work)};
        }
    }
}
print "hidden $hidden\n";
