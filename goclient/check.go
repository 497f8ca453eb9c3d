package main

import (
	"encoding/json"
	"hash/maphash"
	"sync"
)

// What can be wrong with a stream, in the words of the summary.
const (
	wrongID         = "id that did not increase"
	wrongJSON       = "data that is not JSON"
	wrongKeys       = "snapshot without a required key"
	wrongSilent     = "stream silent for more than two heartbeats"
	wrongSize       = "event over -max-event-bytes, dropped"
	wrongMissed     = "published event that did not reach a stream within 10 s"
	wrongPost       = "publish that failed"
	wrongUnfinished = "publish that was not over when the run ended"
	wrongRounds     = "run that ended before its publishes"
	wrongAnswer     = "answer at which a browser gives up"
	wrongFailed     = "stream whose last attempt failed"
)

var requiredKeys = []string{"system_status", "metrics", "activities", "timestamp"}

// A checker checks the data of events. Streams that get the same bytes have them checked once.
type checker struct {
	mode string // none, ids, json, snapshot or auto
	seed maphash.Seed

	mu        sync.Mutex // guards following
	snapshots bool       // in mode auto: some stream has begun with a snapshot
	recent    [8]verdict
	next      int
}

// A verdict is what was found about some data.
type verdict struct {
	sum         uint64 // of the data; 0 for none yet
	kind, about string
}

func newChecker(mode string) *checker {
	return &checker{mode: mode, seed: maphash.MakeSeed()}
}

// ids says whether ids are checked. The standard promises no order, this server does.
func (k *checker) ids() bool {
	switch k.mode {
	case "none":
		return false
	case "auto":
		k.mu.Lock()
		defer k.mu.Unlock()
		return k.snapshots
	}
	return true
}

// data says what is wrong with an event's data, and with which key; kind is empty if nothing is.
// first means that it is the first event of its stream.
func (k *checker) data(ev *event, first bool) (kind, about string) {
	named := len(ev.name) > 0 && string(ev.name) != "message"
	switch k.mode {
	case "none", "ids":
		return "", ""
	case "snapshot", "auto":
		if named || k.mode == "auto" && !k.expectsSnapshot(ev.data, first) {
			return "", ""
		}
	}
	sum := maphash.Bytes(k.seed, ev.data) | 1
	k.mu.Lock()
	for i := range k.recent {
		if v := &k.recent[i]; v.sum == sum {
			defer k.mu.Unlock()
			return v.kind, v.about
		}
	}
	k.mu.Unlock()
	kind, about = examine(ev.data, k.mode != "json")
	k.mu.Lock()
	k.recent[k.next] = verdict{sum, kind, about}
	k.next = (k.next + 1) % len(k.recent)
	k.mu.Unlock()
	return kind, about
}

// expectsSnapshot says whether mode auto takes this server for one that sends snapshots: some
// stream has begun with an object that has two of the required keys at least.
func (k *checker) expectsSnapshot(data []byte, first bool) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.snapshots && first {
		k.snapshots = len(missingKeys(data)) <= len(requiredKeys)-2
	}
	return k.snapshots
}

// examine finds what is wrong with data, whatever the mode.
func examine(data []byte, keys bool) (kind, about string) {
	if !json.Valid(data) {
		return wrongJSON, ""
	}
	if keys {
		if missing := missingKeys(data); len(missing) > 0 {
			return wrongKeys, missing[0]
		}
	}
	return "", ""
}

// missingKeys gives the required keys that data lacks: all of them if it is no JSON object.
func missingKeys(data []byte) []string {
	var object map[string]json.RawMessage
	if json.Unmarshal(data, &object) != nil {
		return requiredKeys
	}
	var missing []string
	for _, key := range requiredKeys {
		if _, ok := object[key]; !ok {
			missing = append(missing, key)
		}
	}
	return missing
}
