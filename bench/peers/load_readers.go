package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"log"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

func client(connections int) *http.Client {
	return &http.Client{Transport: &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: connections}}
}

func get(client *http.Client, url string) (*http.Response, error) {
	request, err := http.NewRequest("GET", url, nil)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Accept", "text/event-stream")
	response, err := client.Do(request)
	if err == nil && response.StatusCode != 200 {
		response.Body.Close()
		err = fmt.Errorf("%s answered %s", url, response.Status)
	}
	return response, err
}

// stream is what one reader has seen.
type stream struct {
	sync.Mutex
	events, reads, lost int
	delays              []float64
	failure             error
}

// take counts the events in some bytes and returns the beginning of one that is not whole. The next one's number is
// next, or any where that is below zero.
func (s *stream) take(data []byte, next *int, measuring bool) []byte {
	now := time.Now().UnixNano()
	s.Lock()
	defer s.Unlock()
	if measuring {
		s.reads++
	}
	for {
		at := bytes.Index(data, []byte(mark))
		if at < 0 {
			return data[max(0, len(data)-len(mark)):]
		}
		if len(data) < at+len(mark)+width {
			return data[at:]
		}
		content := string(data[at+len(mark) : at+len(mark)+width])
		data = data[at+len(mark)+width:]
		sent, _ := strconv.ParseInt(content[:19], 10, 64)
		counted, _ := strconv.Atoi(content[20:])
		if *next >= 0 && counted != *next {
			s.lost++
		}
		*next = counted + 1
		if measuring {
			s.events++
			s.delays = append(s.delays, float64(now-sent)/1000)
		}
	}
}

const openWithin = 6 * time.Second

func read(url string, streams int, warmup, length time.Duration) {
	var measuring atomic.Bool
	shared := client(streams)
	all := make([]*stream, streams)
	var opened, ended sync.WaitGroup
	opening := make(chan struct{}, 32)
	for index := range all {
		mine := &stream{}
		all[index] = mine
		opened.Add(1)
		ended.Add(1)
		go func() {
			defer ended.Done()
			var once sync.Once
			started := func() { once.Do(func() { <-opening; opened.Done() }) }
			opening <- struct{}{}
			defer started()
			response, err := get(shared, url)
			if err != nil {
				mine.failure = err
				return
			}
			defer response.Body.Close()
			buffer := make([]byte, 64*1024)
			rest, next := 0, 0
			for {
				size, err := response.Body.Read(buffer[rest:])
				if size > 0 {
					rest = copy(buffer, mine.take(buffer[:rest+size], &next, measuring.Load()))
					started()
				}
				if err != nil {
					mine.Lock()
					mine.failure = err
					mine.Unlock()
					return
				}
			}
		}()
	}
	ready := make(chan struct{})
	go func() { opened.Wait(); close(ready) }()
	select {
	case <-ready:
	case <-time.After(openWithin):
		say(map[string]any{"phase": "behind"}) // the first streams already keep it too busy to open the last ones
		return
	}
	measure(all, &measuring, warmup, length)
}

// measure lets streams run for a while, and says what came in it.
func measure(all []*stream, measuring *atomic.Bool, warmup, length time.Duration) {
	time.Sleep(warmup)
	measuring.Store(true)
	begun := time.Now()
	say(map[string]any{"phase": "begin"})
	time.Sleep(length)
	measuring.Store(false)
	took := time.Since(begun).Seconds()
	say(map[string]any{"phase": "end"})
	events, reads, lost, broken := 0, 0, 0, 0
	failure := ""
	var delays []float64
	for _, each := range all {
		each.Lock()
		events, reads, lost = events+each.events, reads+each.reads, lost+each.lost
		delays = append(delays, each.delays...)
		if each.failure != nil {
			broken++
			failure = each.failure.Error()
		}
		each.Unlock()
	}
	say(map[string]any{
		"phase": "result", "events": events, "reads": reads, "lost": lost, "broken": broken, "failure": failure,
		"seconds": took, "p50_us": quantile(delays, 0.5), "p99_us": quantile(delays, 0.99), "max_us": quantile(delays, 1),
	})
}

func quantile(values []float64, share float64) float64 {
	if len(values) == 0 {
		return 0
	}
	slices.Sort(values)
	return values[min(len(values)-1, int(share*float64(len(values))))]
}

func first(url string, streams, rounds int) {
	shared := client(streams)
	warm := max(2, 20/streams)
	var lock sync.Mutex
	var times []float64
	for round := range rounds + warm {
		var all sync.WaitGroup
		for range streams {
			all.Add(1)
			go func() {
				defer all.Done()
				begun := time.Now()
				response, err := get(shared, url)
				if err != nil {
					log.Fatal(err)
				}
				defer response.Body.Close()
				body := bufio.NewReader(response.Body)
				var line []byte
				for err == nil && !bytes.Contains(line, []byte(mark)) { // a relay may put its id before it
					line, err = body.ReadBytes('\n')
				}
				took := time.Since(begun)
				if err != nil {
					log.Fatalf("no event came: %v", err)
				}
				io.Copy(io.Discard, body)
				if round >= warm {
					lock.Lock()
					times = append(times, float64(took.Nanoseconds())/1000)
					lock.Unlock()
				}
			}()
		}
		all.Wait()
		if streams > 1 {
			time.Sleep(20 * time.Millisecond)
		}
	}
	say(map[string]any{"p50_us": quantile(times, 0.5), "p99_us": quantile(times, 0.99), "requests": len(times)})
}

func drain(url string) {
	begun := time.Now()
	response, err := get(client(1), url)
	if err != nil {
		log.Fatal(err)
	}
	count, err := swallow(response.Body)
	if err != nil {
		log.Fatal(err)
	}
	say(map[string]any{"bytes": count, "seconds": time.Since(begun).Seconds()})
}
