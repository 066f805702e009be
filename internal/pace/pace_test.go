package pace

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestABodyHasToMoveInEachWindow(t *testing.T) {
	t.Parallel()
	const need = 100
	for name, test := range map[string]struct {
		moved []int64 // before each check
		ends  int     // the check that ends it; 0: none
	}{
		"all at once":                   {[]int64{100, 0, 0, 0, 0, 100, 0, 0, 0, 0}, 0},
		"steadily":                      {[]int64{20, 20, 20, 20, 20, 20, 20, 20, 20, 20}, 0},
		"too little":                    {[]int64{20, 20, 20, 20, 19}, 5},
		"nothing":                       {[]int64{0, 0, 0, 0, 0}, 5},
		"too little in the second one":  {[]int64{0, 0, 0, 0, 100, 20, 20, 20, 20, 19}, 10},
		"nothing since the first check": {[]int64{1000, 0, 0, 0, 0, 0}, 6},
		"nothing, across three windows": {[]int64{0, 0, 0, 0, 100, 0, 100, 0, 0, 0, 0, 0}, 12},
	} {
		m := new(Monitor)
		ends := 0
		for i, n := range test.moved {
			m.moved.Add(n)
			if !m.check(need) {
				ends = i + 1
				break
			}
		}
		if ends != test.ends {
			t.Errorf("%s: check %d ends it, want %d", name, ends, test.ends)
		}
	}
}

// The last check alone says little: an upstream that sends a byte now and then
// has the client written to at some moments too.
func TestMostChecksDecideWhoWasSlow(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		onClient []bool // at each check
		want     bool
	}{
		"always":           {[]bool{true, true, true, true, true}, true},
		"never":            {[]bool{false, false, false, false, false}, false},
		"at the last only": {[]bool{false, false, false, false, true}, false},
		"but for the last": {[]bool{true, true, true, true, false}, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var m Monitor
				checks := 0
				result := make(chan bool, 1)
				limit := Limit{Rate: 100, Window: time.Second}
				onClient := func() bool { checks++; return test.onClient[checks-1] }
				m.Start(limit, onClient, func(client bool) { result <- client })
				if got := <-result; got != test.want {
					t.Errorf("got client %v, want %v", got, test.want)
				}
			})
		})
	}
}
