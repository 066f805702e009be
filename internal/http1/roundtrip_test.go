package http1

import "net/http"

// fieldsOf returns the fields of a header.
func fieldsOf(h http.Header) *Fields {
	f := new(Fields)
	f.AddHeader(h)
	return f
}

// roundTrip sends a request with its own header.
func (c *Client) roundTrip(req *http.Request) (*http.Response, error) {
	return c.RoundTrip(req, fieldsOf(req.Header), false)
}

// roundTripFresh is roundTrip on a new connection.
func (c *Client) roundTripFresh(req *http.Request) (*http.Response, error) {
	return c.RoundTrip(req, fieldsOf(req.Header), true)
}
