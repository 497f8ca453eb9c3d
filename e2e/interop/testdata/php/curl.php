<?php
// Prints what PHP's curl gets, after the time in milliseconds at which it came.

function show(string $what): void
{
    echo (int) (microtime(true) * 1000), " $what\n";
}

$rest = "";
$id = "";
$write = function ($handle, string $part) use (&$rest, &$id): int {
    $lines = explode("\n", $rest . $part);
    $rest = array_pop($lines);
    foreach ($lines as $line) {
        if (!preg_match('/^([^:]*): ?(.*)$/', $line, $field)) {
            continue;
        }
        match ($field[1]) {
            "id" => $id = $field[2],
            "data" => show("event $id " . strlen($field[2])),
            "" => show("heartbeat"),
            default => null,
        };
    }
    return strlen($part);
};

$handle = curl_init($argv[1]);
curl_setopt($handle, CURLOPT_FAILONERROR, true);
curl_setopt($handle, CURLOPT_WRITEFUNCTION, $write);
show(curl_exec($handle) ? "end" : "error " . curl_error($handle));
