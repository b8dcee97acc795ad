// Command load is both ends of every measurement: the origin that sends, and the readers that count.
//
//	load origin LISTEN                        serve /events, /v1/chat/completions, /one, /bytes and /sink
//	load read   URL STREAMS WARMUP SECONDS    read streams of events; count them, and the delay of each
//	load first  URL STREAMS ROUNDS            open that many at once, again and again; time to the first event
//	load drain  URL                           read one body to its end
//	load hold   URL CONNECTIONS               open that many, and keep them until stdin ends
//	load fanout URL READERS WARMUP SECONDS AT have one stream read by many; count their events, and the delay of each
//	load gather URL READERS AT                open one stream and its readers, and keep them until stdin ends
//	load replay URL TIMES                     read a stream to its end, then again where it is kept; count its events
//
// AT is where the readers ask, several addresses with commas between them; "" for where the stream was opened.
//
// What it has to say is JSON, one object per line of stdout. Only the standard library is used, and connections are
// written to directly, so that neither end is what limits a measurement.
package main

import (
	"encoding/json"
	"log"
	"os"
	"strconv"
	"time"
)

func main() {
	log.SetFlags(0)
	arguments := append(os.Args[1:], make([]string, 6)...)
	switch arguments[0] {
	case "origin":
		origin(arguments[1])
	case "read":
		read(arguments[1], number(arguments[2]), seconds(arguments[3]), seconds(arguments[4]))
	case "first":
		first(arguments[1], number(arguments[2]), number(arguments[3]))
	case "drain":
		drain(arguments[1])
	case "hold":
		hold(arguments[1], number(arguments[2]))
	case "fanout":
		fanout(arguments[1], number(arguments[2]), seconds(arguments[3]), seconds(arguments[4]), arguments[5])
	case "gather":
		keep(arguments[1], number(arguments[2]), arguments[3])
	case "replay":
		replay(arguments[1], number(arguments[2]))
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
