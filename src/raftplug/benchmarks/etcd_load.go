// A load for an etcd cluster: W puts outstanding, sent to the leader by etcd's own client.  Prints one line of JSON.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"log"
	"os"
	"sort"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/clientv3"
)

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

// leader returns the endpoint of the member that leads.
func leader(client *clientv3.Client, endpoints []string) string {
	for {
		for _, endpoint := range endpoints {
			status, err := client.Status(context.Background(), endpoint)
			if err == nil && status.Leader == status.Header.MemberId {
				return endpoint
			}
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func main() {
	endpoints := flag.String("endpoints", "", "of the members, with commas between them")
	window := flag.Int("window", 1, "puts outstanding")
	size := flag.Int("payload", 16, "bytes of a value")
	seconds := flag.Float64("seconds", 1, "how long it runs")
	flag.Parse()
	all := strings.Split(*endpoints, ",")
	client, err := clientv3.New(clientv3.Config{Endpoints: all, DialTimeout: 10 * time.Second})
	check(err)
	client.SetEndpoints(leader(client, all))
	value := strings.Repeat("x", *size)
	put := func() {
		_, err := client.Put(context.Background(), "k", value)
		check(err)
	}
	for i := 0; i < 20; i++ {
		put() // To warm up.
	}
	elapsed := make([][]float64, *window)
	begin := time.Now()
	end := begin.Add(time.Duration(*seconds * float64(time.Second)))
	var workers sync.WaitGroup
	for w := range elapsed {
		workers.Add(1)
		go func(w int) {
			defer workers.Done()
			for time.Now().Before(end) {
				start := time.Now()
				put()
				elapsed[w] = append(elapsed[w], time.Since(start).Seconds())
			}
		}(w)
	}
	workers.Wait()
	total := time.Since(begin).Seconds()
	var times []float64
	for _, each := range elapsed {
		times = append(times, each...)
	}
	sort.Float64s(times)
	check(json.NewEncoder(os.Stdout).Encode(map[string]float64{
		"per_s":  float64(len(times)) / total,
		"p50_us": times[len(times)/2] * 1e6,
		"p99_us": times[len(times)*99/100] * 1e6,
	}))
}
