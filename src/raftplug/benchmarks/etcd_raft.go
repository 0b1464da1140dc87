// The Go etcd/raft library as level 1 of `raftplug bench` drives ours: three voters in one process, no disk and no
// network.  W calls of Propose, then messages are moved until all W are committed and applied on all three.
package main

import (
	"flag"
	"fmt"
	"io/ioutil"
	"log"
	"time"

	"go.etcd.io/etcd/raft"
	"go.etcd.io/etcd/raft/raftpb"
)

const (
	compactEvery = 10000
	keep         = 1000
)

type replica struct {
	node    *raft.RawNode
	storage *raft.MemoryStorage
	applied uint64
}

type group struct {
	replicas  []*replica
	compactAt uint64
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func newGroup(voters int) *group {
	g := &group{compactAt: compactEvery}
	peers := make([]raft.Peer, voters)
	for i := range peers {
		peers[i].ID = uint64(i + 1)
	}
	quiet := &raft.DefaultLogger{Logger: log.New(ioutil.Discard, "", 0)}
	for i := range peers {
		storage := raft.NewMemoryStorage()
		node, err := raft.NewRawNode(&raft.Config{
			ID: uint64(i + 1), ElectionTick: 10, HeartbeatTick: 1, Storage: storage, MaxSizePerMsg: 64 << 10,
			MaxInflightMsgs: 256, CheckQuorum: true, PreVote: true, Logger: quiet,
		})
		check(err)
		check(node.Bootstrap(peers))
		g.replicas = append(g.replicas, &replica{node: node, storage: storage})
	}
	for i := 0; i < 3; i++ {
		g.turn() // The bootstrap's entries.
	}
	check(g.replicas[0].node.Campaign())
	for g.replicas[0].node.BasicStatus().RaftState != raft.StateLeader {
		g.turn()
	}
	return g
}

// turn is one turn of each: what is to be written is kept at once, what is sent arrives, what may be is applied.
func (g *group) turn() {
	for _, r := range g.replicas {
		for r.node.HasReady() {
			ready := r.node.Ready()
			check(r.storage.Append(ready.Entries))
			if !raft.IsEmptyHardState(ready.HardState) {
				check(r.storage.SetHardState(ready.HardState))
			}
			for _, message := range ready.Messages {
				_ = g.replicas[message.To-1].node.Step(message)
			}
			for _, entry := range ready.CommittedEntries {
				if entry.Type == raftpb.EntryConfChange {
					var change raftpb.ConfChange
					check(change.Unmarshal(entry.Data))
					r.node.ApplyConfChange(change)
				}
				r.applied = entry.Index
			}
			r.node.Advance(ready)
		}
	}
}

func (g *group) least() uint64 {
	least := g.replicas[0].applied
	for _, r := range g.replicas[1:] {
		if r.applied < least {
			least = r.applied
		}
	}
	return least
}

func (g *group) commit(window int, payload []byte) {
	last, err := g.replicas[0].storage.LastIndex()
	check(err)
	for i := 0; i < window; i++ {
		check(g.replicas[0].node.Propose(payload))
	}
	for target := last + uint64(window); g.least() < target; {
		g.turn()
	}
	if last >= g.compactAt {
		g.compactAt = last + compactEvery
		for _, r := range g.replicas {
			check(r.storage.Compact(r.applied - keep))
		}
	}
}

func main() {
	window := flag.Int("window", 1, "proposals before messages are moved")
	size := flag.Int("payload", 16, "bytes of one")
	seconds := flag.Float64("seconds", 0.2, "how long it runs, after as long to warm up")
	flag.Parse()
	g, payload := newGroup(3), make([]byte, *size)
	for _, measured := range []bool{false, true} {
		count, begin := 0, time.Now()
		for time.Since(begin).Seconds() < *seconds {
			g.commit(*window, payload)
			count += *window
		}
		if measured {
			fmt.Printf("%.1f\n", float64(count)/time.Since(begin).Seconds())
		}
	}
}
