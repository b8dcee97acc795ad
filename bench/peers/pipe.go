// Command pipe streams a download into a multipart upload: pipe SOURCE DESTINATION
package main

import (
	"io"
	"log"
	"mime/multipart"
	"net/http"
	"os"
)

func main() {
	source, err := http.Get(os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	defer source.Body.Close()
	reader, writer := io.Pipe()
	form := multipart.NewWriter(writer)
	go func() {
		part, err := form.CreateFormFile("file", "file")
		if err == nil {
			_, err = io.Copy(part, source.Body)
		}
		if err == nil {
			err = form.Close()
		}
		writer.CloseWithError(err)
	}()
	answer, err := http.Post(os.Args[2], form.FormDataContentType(), reader)
	if err != nil {
		log.Fatal(err)
	}
	defer answer.Body.Close()
	io.Copy(os.Stdout, answer.Body)
	if answer.StatusCode != http.StatusOK {
		log.Fatal(answer.Status)
	}
}
