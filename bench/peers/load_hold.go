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
	"syscall"
	"time"
)

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
