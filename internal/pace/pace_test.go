package pace

import "testing"

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
