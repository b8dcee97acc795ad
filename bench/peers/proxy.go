// Command proxy is the standard library's reverse proxy: proxy LISTEN UPSTREAM
package main

import (
	"log"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
)

func main() {
	upstream, err := url.Parse(os.Args[2])
	if err != nil {
		log.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(upstream)
	proxy.FlushInterval = -1 // each write at once
	proxy.Transport = &http.Transport{DisableCompression: true, MaxIdleConns: 1000, MaxIdleConnsPerHost: 1000}
	proxy.ErrorLog = log.New(os.Stderr, "", 0)
	log.Fatal(http.ListenAndServe(os.Args[1], proxy))
}
