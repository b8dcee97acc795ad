package main

import (
	"bytes"
	"fmt"
	"io"
	"log"
	"math/rand"
	"net"
	"net/http"
	"strconv"
	"time"
)

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
// With ?count= it sends so many more, as they are taken, and ends.
func events(w http.ResponseWriter, r *http.Request) {
	io.Copy(io.Discard, r.Body)
	rate := -1
	if text := r.URL.Query().Get("rate"); text != "" {
		rate = number(text)
	}
	count := 0
	if text := r.URL.Query().Get("count"); text != "" {
		count = number(text)
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
	case count > 0:
		var all []byte
		for number := 1; number <= count; number++ {
			all = append(all, event(number)...)
		}
		connection.Write(append(all, "0\r\n\r\n"...))
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
