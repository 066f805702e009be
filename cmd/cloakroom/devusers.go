package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/devidp"
)

const (
	devUsersFile = "dev-users.yaml"
	// devUsersInterval is how often the file with users is examined for a
	// change.
	devUsersInterval = 500 * time.Millisecond
)

// userFile returns the name of the file with users, which need not exist.
func (d *dev) userFile() string { return cmp.Or(d.usersFile, devUsersFile) }

// readUsers reads the users.
func (d *dev) readUsers() error {
	d.usersState = stateOf(d.userFile())
	read, err := devidp.ReadUserFile(d.userFile())
	switch {
	case d.usersFile == "" && errors.Is(err, fs.ErrNotExist):
		d.users = &devidp.UserFile{Users: devidp.DefaultUsers()}
		return nil
	case d.usersFile != "" && errors.Is(err, fs.ErrNotExist):
		return usageError{fmt.Errorf("--users: %w", err)}
	case err != nil:
		return usageError{err}
	}
	d.users = read
	return nil
}

// watchUsers gives the provider the users of a changed file, until ctx ends. It
// waits until the file has not changed for an interval, because it may be being
// written.
func (d *dev) watchUsers(ctx context.Context, provider *devidp.Provider, stdout, stderr io.Writer) {
	read := d.usersState
	seen := read
	tick := time.NewTicker(devUsersInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now := stateOf(d.userFile())
		settled := now == seen
		seen = now
		if !settled || now == read {
			continue
		}
		read = now
		if err := d.changeUsers(provider, stdout); err != nil {
			fmt.Fprintf(stderr, "\n%v\nThe users are as before. Correct %s, it is read again when it changes.\n\n",
				err, d.userFile())
		}
	}
}

// changeUsers reads the file with users for the provider.
func (d *dev) changeUsers(provider *devidp.Provider, stdout io.Writer) error {
	read, err := devidp.ReadUserFile(d.userFile())
	if err != nil {
		return err
	}
	if err := provider.SetUsers(read.Users, read.ACRValues); err != nil {
		return fmt.Errorf("%s: %w", d.userFile(), err)
	}
	_, err = fmt.Fprintf(stdout, "\n%s has changed. You can sign in as %s.\n\n", d.userFile(), nameUsers(read.Users))
	return err
}
