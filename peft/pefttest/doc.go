// Package pefttest checks adapter methods: [Run] holds a method against what every
// method promises, and [Golden] against an adapter that Python's peft made.
//
// A new method's test is a few lines:
//
//	func TestConformance(t *testing.T) {
//		pefttest.Run(t, pefttest.Suite{Config: mymethod.Config{R: 4}})
//		pefttest.Golden(t, "*-mymethod_*") // fixtures of internal/golden
//	}
package pefttest
