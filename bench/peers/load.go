// Command load is both ends of every measurement: the origin that sends, and the readers that count.
//
//	load origin LISTEN                     serve /events, /v1/chat/completions, /one, /bytes and /sink
//	load read   URL STREAMS WARMUP SECONDS read streams of events; count them, and the delay of each
//	load first  URL STREAMS ROUNDS         open that many at once, again and again; time to the first event
//	load hold   URL CONNECTIONS            open that many, and keep them until stdin ends
//	load drain  URL                        read one body to its end
//
// What it has to say is JSON, one object per line of stdout. Only the standard library is used, and connections are
// written to directly, so that neither end is what limits a measurement.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"math/rand"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

func main() {
	log.SetFlags(0)
	arguments := append(os.Args[1:], "", "", "", "")
	switch arguments[0] {
	case "origin":
		origin(arguments[1])
	case "read":
		read(arguments[1], number(arguments[2]), seconds(arguments[3]), seconds(arguments[4]))
	case "first":
		first(arguments[1], number(arguments[2]), number(arguments[3]))
	case "hold":
		hold(arguments[1], number(arguments[2]))
	case "drain":
		drain(arguments[1])
	default:
		log.Fatalf("load: no such command: %q", arguments[0])
	}
}

func number(text string) int {
	value, err := strconv.Atoi(text)
	if err != nil {
		log.Fatalf("load: %v", err)
	}
	return value
}

func seconds(text string) time.Duration {
	value, err := strconv.ParseFloat(text, 64)
	if err != nil {
		log.Fatalf("load: %v", err)
	}
	return time.Duration(value * float64(time.Second))
}

func say(value any) {
	line, err := json.Marshal(value)
	if err != nil {
		log.Fatal(err)
	}
	os.Stdout.Write(append(line, '\n'))
}

// ------------------------------------------------------------------------------------------------------- the origin

// An event is a chunk of a chat completion, as models send them. Its content is the instant of sending, in
// nanoseconds since 1970, and the event's number in its stream, both of fixed width.
const (
	before = `data: {"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1750000000,"model":"bench",` +
		`"choices":[{"index":0,"delta":{"content":"`
	after  = `"},"logprobs":null,"finish_reason":null}]}` + "\n\n"
	mark   = `"content":"`
	width  = 19 + 1 + 10
	header = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-store\r\n" +
		"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
)

// event is one event as an HTTP chunk of its own.
func event(number int) []byte {
	data := fmt.Sprintf("%s%019d %010d%s", before, time.Now().UnixNano(), number, after)
	return fmt.Appendf(nil, "%x\r\n%s\r\n", len(data), data)
}

func origin(listen string) {
	http.HandleFunc("/events", events)
	http.HandleFunc("/v1/chat/completions", events)
	http.HandleFunc("/one", one)
	http.HandleFunc("/bytes", blob)
	http.HandleFunc("/sink", sink)
	listener, err := net.Listen("tcp", listen)
	if err != nil {
		log.Fatal(err)
	}
	say(map[string]string{"listening": listener.Addr().String()})
	log.Fatal(http.Serve(listener, nil))
}

// events sends ?rate= events a second, one write each; without a rate as many as are taken, with 0 the first one only.
func events(w http.ResponseWriter, r *http.Request) {
	io.Copy(io.Discard, r.Body)
	rate := -1
	if text := r.URL.Query().Get("rate"); text != "" {
		rate = number(text)
	}
	connection, _, err := w.(http.Hijacker).Hijack()
	if err != nil {
		return
	}
	defer connection.Close()
	if _, err := connection.Write(append([]byte(header), event(0)...)); err != nil {
		return
	}
	switch {
	case rate == 0:
		connection.Read(make([]byte, 1)) // until the reader leaves
	case rate < 0:
		block := bytes.Repeat(event(1), 64)
		for err == nil {
			_, err = connection.Write(block)
		}
	default:
		interval := time.Second / time.Duration(rate)
		time.Sleep(time.Duration(rand.Int63n(int64(interval))))
		ticker := time.NewTicker(interval)
		defer ticker.Stop()
		for number := 1; err == nil; number++ {
			<-ticker.C
			_, err = connection.Write(event(number))
		}
	}
}

// one sends a single event and ends, so that the connection can be used again.
func one(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/event-stream")
	fmt.Fprintf(w, "%s%019d %010d%s", before, time.Now().UnixNano(), 0, after)
	w.(http.Flusher).Flush()
}

// blob sends ?n= bytes, with a Content-Length unless ?chunked=1.
func blob(w http.ResponseWriter, r *http.Request) {
	left := number(r.URL.Query().Get("n"))
	w.Header().Set("Content-Type", "application/octet-stream")
	if r.URL.Query().Get("chunked") != "1" {
		w.Header().Set("Content-Length", strconv.Itoa(left))
	}
	piece := bytes.Repeat([]byte("penstock"), 1<<17)
	for left > 0 {
		written, err := w.Write(piece[:min(left, len(piece))])
		if err != nil {
			return
		}
		left -= written
	}
}

// sink takes a body and tells its length.
func sink(w http.ResponseWriter, r *http.Request) {
	count, err := swallow(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	fmt.Fprintf(w, `{"bytes":%d}`, count)
}

func swallow(body io.Reader) (int, error) {
	piece := make([]byte, 1<<20)
	count := 0
	for {
		size, err := body.Read(piece)
		count += size
		if err == io.EOF {
			return count, nil
		}
		if err != nil {
			return count, err
		}
	}
}

// ------------------------------------------------------------------------------------------------------ the readers

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

// take counts the events in some bytes and returns the beginning of one that is not whole.
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
		if counted != *next {
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
		"seconds": took, "p50_us": quantile(delays, 0.5), "p99_us": quantile(delays, 0.99),
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
				line, err := bufio.NewReader(response.Body).ReadBytes('\n')
				took := time.Since(begun)
				if err != nil || !bytes.Contains(line, []byte(mark)) {
					log.Fatalf("the first event is %q (%v)", line, err)
				}
				io.Copy(io.Discard, response.Body)
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

// hold opens connections and reads from each the first event, or the whole of a body that ends.
func hold(address string, connections int) {
	target, err := url.Parse(address)
	if err != nil {
		log.Fatal(err)
	}
	request := fmt.Sprintf("GET %s HTTP/1.1\r\nHost: %s\r\nAccept: text/event-stream\r\n\r\n", target.RequestURI(), target.Host)
	ends := strings.HasSuffix(target.Path, "/one")
	held := make([]net.Conn, connections)
	failures := make([]error, connections)
	places := make(chan struct{}, 64)
	var all sync.WaitGroup
	for index := range held {
		places <- struct{}{}
		all.Add(1)
		go func() {
			defer all.Done()
			held[index], failures[index] = open(target.Host, request, ends)
			<-places
		}()
	}
	all.Wait()
	failed, failure := 0, ""
	for _, err := range failures {
		if err != nil {
			failed++
			failure = err.Error()
		}
	}
	time.Sleep(300 * time.Millisecond)
	closed := 0
	for _, connection := range held {
		if connection != nil && isClosed(connection) {
			closed++
		}
	}
	say(map[string]any{"open": connections - failed, "failed": failed, "failure": failure, "closed": closed})
	io.Copy(io.Discard, os.Stdin)
	for _, connection := range held {
		if connection != nil {
			connection.Close()
		}
	}
}

// isClosed tells whether the other side has closed a connection.
func isClosed(connection net.Conn) bool {
	raw, err := connection.(*net.TCPConn).SyscallConn()
	if err != nil {
		return true
	}
	closed := false
	raw.Read(func(descriptor uintptr) bool {
		size, _, err := syscall.Recvfrom(int(descriptor), make([]byte, 1), syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		closed = size == 0 && err == nil || err == syscall.ECONNRESET
		return true
	})
	return closed
}

func open(host, request string, ends bool) (net.Conn, error) {
	connection, err := net.Dial("tcp", host)
	if err != nil {
		return nil, err
	}
	connection.SetDeadline(time.Now().Add(60 * time.Second))
	defer connection.SetDeadline(time.Time{})
	if _, err := io.WriteString(connection, request); err != nil {
		return connection, err
	}
	reader := bufio.NewReaderSize(connection, 4096)
	response, err := http.ReadResponse(reader, nil)
	if err != nil {
		return connection, err
	}
	if response.StatusCode != 200 {
		return connection, fmt.Errorf("answered %s", response.Status)
	}
	if ends {
		_, err = io.Copy(io.Discard, response.Body)
	} else {
		_, err = io.ReadFull(response.Body, make([]byte, len(before)))
	}
	return connection, err
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
