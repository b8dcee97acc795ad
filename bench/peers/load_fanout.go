package main

import (
	"bufio"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// follower is one of the readers of a stream, on a connection of its own.
type follower struct {
	stream
	connection net.Conn
	body       *bufio.Reader // as it is on the wire: every event is within one chunk
	next       int
}

// gather opens a stream, and so many readers of it besides. Where the answer says at what path the stream is kept, they
// read it there from its first event on; else they ask as the first one did, and begin with whatever comes.
func gather(address string, readers int, at string, opened func(*follower)) []*follower {
	target, err := url.Parse(address)
	if err != nil {
		log.Fatal(err)
	}
	first := &follower{}
	path, err := first.open(target.Host, target.RequestURI())
	if err != nil {
		log.Fatal(err)
	}
	next := 0
	if path == "" {
		path, next = target.RequestURI(), -1
	}
	opened(first)
	hosts := []string{target.Host}
	if at != "" {
		hosts = strings.Split(at, ",")
	}
	all := make([]*follower, readers)
	places := make(chan struct{}, 64)
	var open sync.WaitGroup
	for index := range all {
		all[index] = &follower{next: next}
		places <- struct{}{}
		open.Add(1)
		go func() {
			defer open.Done()
			if _, err := all[index].open(hosts[index%len(hosts)], path); err != nil {
				log.Fatal(err)
			}
			opened(all[index])
			<-places
		}()
	}
	open.Wait()
	return append(all, first)
}

// open asks for a stream and reads the answer's head; it returns the path at which the stream is kept, if any.
func (f *follower) open(host, path string) (string, error) {
	connection, err := net.Dial("tcp", host)
	if err != nil {
		return "", err
	}
	f.connection = connection
	connection.SetReadDeadline(time.Now().Add(30 * time.Second))
	defer connection.SetReadDeadline(time.Time{})
	if _, err := fmt.Fprintf(connection, "GET %s HTTP/1.1\r\nHost: %s\r\nAccept: text/event-stream\r\n\r\n", path, host); err != nil {
		return "", err
	}
	f.body = bufio.NewReaderSize(connection, 4096)
	response, err := http.ReadResponse(f.body, nil)
	if err != nil {
		return "", err
	}
	if response.StatusCode != 200 {
		return "", fmt.Errorf("%s%s answered %s", host, path, response.Status)
	}
	return response.Header.Get("Location"), nil
}

func fanout(address string, readers int, warmup, length time.Duration, at string) {
	var measuring atomic.Bool
	followers := gather(address, readers, at, func(f *follower) { go f.follow(&measuring) })
	all := make([]*stream, len(followers))
	for index, each := range followers {
		all[index] = &each.stream
	}
	measure(all, &measuring, warmup, length)
}

func (f *follower) follow(measuring *atomic.Bool) {
	buffer := make([]byte, 8192)
	rest := 0
	for {
		size, err := f.body.Read(buffer[rest:])
		if size > 0 {
			rest = copy(buffer, f.take(buffer[:rest+size], &f.next, measuring.Load()))
		}
		if err != nil {
			f.Lock()
			f.failure = err
			f.Unlock()
			return
		}
	}
}

// keep opens a stream and its readers, and keeps them until stdin ends.
func keep(address string, readers int, at string) {
	all := gather(address, readers, at, func(*follower) {})
	time.Sleep(time.Second) // what the answers' heads were sent before is done by then
	say(map[string]any{"open": len(all)})
	io.Copy(io.Discard, os.Stdin)
}

// replay reads a stream to its end, and then, so many times, what is kept of it.
func replay(address string, times int) {
	target, err := url.Parse(address)
	if err != nil {
		log.Fatal(err)
	}
	shared := client(1)
	kept, events := whole(shared, address)
	if target.Path = kept; kept == "" {
		log.Fatal("the stream is not kept: its answer has no Location")
	}
	target.RawQuery = ""
	say(map[string]any{"phase": "begin"})
	begun := time.Now()
	for range times {
		if _, again := whole(shared, target.String()); again != events {
			log.Fatalf("%d events came of %d", again, events)
		}
	}
	took := time.Since(begun).Seconds()
	say(map[string]any{"phase": "end"})
	say(map[string]any{"phase": "result", "events": events * times, "seconds": took})
}

// whole reads a stream to its end; the path at which it is kept, and how many events it had, each in its turn.
func whole(client *http.Client, address string) (string, int) {
	response, err := get(client, address)
	if err != nil {
		log.Fatal(err)
	}
	defer response.Body.Close()
	mine := &stream{}
	buffer := make([]byte, 256*1024)
	rest, next := 0, 0
	for {
		size, err := response.Body.Read(buffer[rest:])
		rest = copy(buffer, mine.take(buffer[:rest+size], &next, true))
		if err == io.EOF {
			break
		}
		if err != nil {
			log.Fatal(err)
		}
	}
	if mine.lost > 0 {
		log.Fatalf("%d gaps in the events", mine.lost)
	}
	return response.Header.Get("Location"), mine.events
}
