package main

import (
	"container/list"
	"net"
	"sync"
)

// maxAdminConns is how many connections the admin listener keeps. Their
// descriptors are in the reserve that the public listener leaves.
const maxAdminConns = 64

// adminListener closes the oldest connection for a new one beyond
// maxAdminConns. So probes get a response in spite of many idle connections.
type adminListener struct {
	net.Listener

	mu   sync.Mutex // guards open
	open list.List  // of net.Conn, oldest first
}

// Accept returns the next connection.
func (l *adminListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	conn := &adminConn{Conn: c, listener: l}
	conn.place = l.open.PushBack(c)
	var oldest net.Conn
	if l.open.Len() > maxAdminConns {
		oldest = l.open.Remove(l.open.Front()).(net.Conn)
	}
	l.mu.Unlock()
	if oldest != nil {
		oldest.Close()
	}
	return conn, nil
}

// adminConn is a connection of an adminListener.
type adminConn struct {
	net.Conn
	listener *adminListener
	place    *list.Element
}

// Close closes the connection, which is not counted any more.
func (c *adminConn) Close() error {
	c.listener.mu.Lock()
	c.listener.open.Remove(c.place) // does nothing if it was removed
	c.listener.mu.Unlock()
	return c.Conn.Close()
}
