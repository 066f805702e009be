package bff_test

import (
	"testing"

	"github.com/cloakroom-bff/cloakroom/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }
