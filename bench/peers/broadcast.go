// Command broadcast reads a stream once for all who ask for it: broadcast LISTEN UPSTREAM
//
// What one writes by hand: a channel per reader, and each piece to all of them. Who does not keep up is let go of.
// Nothing is kept: a reader begins with what comes next.
package main

import (
	"bytes"
	"log"
	"net/http"
	"os"
	"sync"
)

const queued = 64

type hub struct {
	sync.Mutex
	readers map[chan []byte]bool
}

// run reads the stream to its end, and hands each piece to all readers.
func (h *hub) run(url string) {
	response, err := http.Get(url)
	if err != nil {
		log.Fatal(err)
	}
	defer response.Body.Close()
	buffer := make([]byte, 32*1024)
	for {
		size, err := response.Body.Read(buffer)
		if err != nil {
			log.Fatal(err)
		}
		piece := bytes.Clone(buffer[:size])
		h.Lock()
		for reader := range h.readers {
			select {
			case reader <- piece:
			default:
				delete(h.readers, reader)
				close(reader)
			}
		}
		h.Unlock()
	}
}

func (h *hub) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	pieces := make(chan []byte, queued)
	h.Lock()
	h.readers[pieces] = true
	h.Unlock()
	defer func() {
		h.Lock()
		delete(h.readers, pieces)
		h.Unlock()
	}()
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	flusher := http.NewResponseController(w)
	flusher.Flush()
	for {
		select {
		case piece, open := <-pieces:
			if !open {
				return
			}
			w.Write(piece)
			if flusher.Flush() != nil {
				return
			}
		case <-r.Context().Done():
			return
		}
	}
}

func main() {
	var lock sync.Mutex
	hubs := map[string]*hub{}
	log.Fatal(http.ListenAndServe(os.Args[1], http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		target := r.URL.RequestURI()
		lock.Lock()
		mine, running := hubs[target]
		if !running {
			mine = &hub{readers: map[chan []byte]bool{}}
			hubs[target] = mine
			go mine.run(os.Args[2] + target)
		}
		lock.Unlock()
		mine.ServeHTTP(w, r)
	})))
}
