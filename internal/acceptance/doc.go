// Package acceptance checks that docs/acceptance.md names tests that exist.
package acceptance
