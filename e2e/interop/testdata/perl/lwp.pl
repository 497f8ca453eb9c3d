# Prints what LWP gets, after the time in milliseconds at which it came.
use strict;
use warnings;
use LWP::UserAgent;
use Time::HiRes qw(time);

$| = 1;
my ($rest, $id) = ("", "");

sub show { printf "%d %s\n", time * 1000, shift }

sub show_line {
	my $line = shift;
	$id = $1 if $line =~ /^id: ?(.*)/;
	show("event $id " . length $1) if $line =~ /^data: ?(.*)/;
	show("heartbeat") if $line =~ /^:/;
}

my $read = sub {
	$rest .= shift;
	show_line($1) while $rest =~ s/^(.*)\n//;
};

my $answer = LWP::UserAgent->new->get(shift, ":content_cb" => $read);
my $problem = $answer->header("X-Died") // $answer->header("Client-Aborted");
$problem //= $answer->status_line unless $answer->is_success;
show(defined $problem ? "error $problem" : "end");
