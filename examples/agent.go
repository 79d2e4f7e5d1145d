// Reports the bytes of each network interface of this host. Needs Go 1.18 or later, and no modules: go run agent.go
package main

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"math/big"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"
)

type flow struct {
	SrcApp  string `json:"src_app"`
	DestApp string `json:"dest_app"`
	VpcID   string `json:"vpc_id"`
	BytesTx uint64 `json:"bytes_tx"`
	BytesRx uint64 `json:"bytes_rx"`
	Hour    int64  `json:"hour"`
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func setting(name, otherwise string) string {
	if value := os.Getenv(name); value != "" {
		return value
	}
	return otherwise
}

// readCounters returns the bytes that each interface has sent and received since it exists.
func readCounters(file string) map[string][2]uint64 {
	text, err := os.ReadFile(file)
	check(err)
	counters := map[string][2]uint64{}
	for _, line := range strings.Split(string(text), "\n") {
		if name, numbers, found := strings.Cut(line, ":"); found {
			columns := strings.Fields(numbers)
			tx, err := strconv.ParseUint(columns[8], 10, 64)
			check(err)
			rx, err := strconv.ParseUint(columns[0], 10, 64)
			check(err)
			counters[strings.TrimSpace(name)] = [2]uint64{tx, rx}
		}
	}
	return counters
}

// send sends a batch until it counts. All tries have the same key and body, so it counts once.
func send(url string, body []byte) {
	key := make([]byte, 16)
	_, err := rand.Read(key)
	check(err)
	client := http.Client{Timeout: 30 * time.Second}
	for longest := 200 * time.Millisecond; ; {
		request, err := http.NewRequest("POST", url+"/flows", bytes.NewReader(body))
		check(err)
		request.Header.Set("Content-Type", "application/json")
		request.Header.Set("Idempotency-Key", fmt.Sprintf("%x", key))
		if token := os.Getenv("FLOWTALLY_TOKEN"); token != "" {
			request.Header.Set("Authorization", "Bearer "+token)
		}
		seconds, status, answer := 0, 0, []byte{}
		response, err := client.Do(request)
		if err == nil {
			seconds, _ = strconv.Atoi(response.Header.Get("Retry-After"))
			status = response.StatusCode
			answer, err = io.ReadAll(response.Body)
			response.Body.Close()
		}
		if err == nil && status == 200 {
			return
		}
		if err == nil && status < 500 && status != 408 && status != 425 && status != 429 {
			log.Fatalf("nothing of the batch counted: %d %s", status, answer)
		}
		log.Printf("%d %s %v", status, bytes.TrimSpace(answer), err)
		jitter, err := rand.Int(rand.Reader, big.NewInt(int64(longest)))
		check(err)
		time.Sleep(time.Duration(seconds)*time.Second + time.Duration(jitter.Int64()))
		if longest < 30*time.Second {
			longest *= 2
		}
	}
}

// grown returns by how much a counter grew. One that has become smaller began again at 0.
func grown(now, before uint64) uint64 {
	if now >= before {
		return now - before
	}
	return now
}

func main() {
	url, file := setting("FLOWTALLY_URL", "http://127.0.0.1:8080"), setting("COUNTERS", "/proc/net/dev")
	host, err := os.Hostname()
	check(err)
	period, err := strconv.ParseFloat(setting("PERIOD", "60"), 64)
	check(err)
	before := readCounters(file)
	fmt.Printf("reports %s to %s every %g s\n", file, url, period)
	for {
		time.Sleep(time.Duration(period * float64(time.Second)))
		now, hour, flows := readCounters(file), time.Now().Unix()/3600, []flow{}
		for name, counters := range now {
			tx, rx := grown(counters[0], before[name][0]), grown(counters[1], before[name][1])
			if tx > 0 || rx > 0 {
				flows = append(flows, flow{setting("APP", host), name, os.Getenv("VPC"), tx, rx, hour})
			}
		}
		if len(flows) > 0 {
			body, err := json.Marshal(flows)
			check(err)
			send(url, body)
		}
		before = now
	}
}
