package jinja

// expr is an expression; stmt is a statement. Their types say what they are,
// eval.go and exec.go what they do.
type (
	expr interface{ node() }
	stmt interface{ node() }
)

type (
	literal struct{ value any }
	name    struct{ id string }
	// sequence is a list or a tuple display.
	sequence struct {
		items []expr
		tuple bool
	}
	dictLit struct{ keys, values []expr }
	// attribute is x.name; item is x[key]; slice is x[start:stop:step], with nil
	// for what is not given.
	attribute struct {
		x    expr
		name string
	}
	item  struct{ x, key expr }
	slice struct{ x, start, stop, step expr }
	call  struct {
		x    expr
		args arguments
	}
	// filter and test have x nil in {% filter %} and {% set %} blocks.
	filter struct {
		x    expr
		name string
		args arguments
	}
	test struct {
		x      expr
		name   string
		args   arguments
		negate bool
	}
	unary struct {
		op string
		x  expr
	}
	binary struct {
		op   string
		a, b expr
	}
	// compare is a chain: a < b < c.
	compare struct {
		first expr
		ops   []string
		rest  []expr
	}
	// cond is a if test else b; without else b is nil.
	cond struct{ a, test, b expr }
)

// arguments of a call.
type arguments struct {
	positional []expr
	names      []string // of keyword
	keyword    []expr
}

type (
	data   struct{ text string }
	output struct{ x expr }
	ifStmt struct {
		tests  []expr
		bodies [][]stmt // one more than tests if there is an else
	}
	forStmt struct {
		target, iter, cond expr // cond may be nil
		body, orElse       []stmt
	}
	setStmt  struct{ target, value expr }
	setBlock struct {
		target  expr
		filters expr // chain of filter whose innermost x is nil; may be nil
		body    []stmt
	}
	macroStmt struct{ macroDef }
	callStmt  struct {
		macro macroDef
		call  *call
	}
	filterBlock struct {
		filters expr
		body    []stmt
	}
	// scope is {% with %} and {% generation %}.
	scope struct {
		targets, values []expr
		body            []stmt
	}
	breakStmt    struct{}
	continueStmt struct{}
)

// macroDef is a macro, or the body of a {% call %} as caller.
type macroDef struct {
	name     string
	params   []string
	defaults []expr // of the last parameters
	body     []stmt
	// The body names varargs, kwargs or caller, so the macro takes them.
	varargs, kwargs, caller bool
}

func (*literal) node()      {}
func (*name) node()         {}
func (*sequence) node()     {}
func (*dictLit) node()      {}
func (*attribute) node()    {}
func (*item) node()         {}
func (*slice) node()        {}
func (*call) node()         {}
func (*filter) node()       {}
func (*test) node()         {}
func (*unary) node()        {}
func (*binary) node()       {}
func (*compare) node()      {}
func (*cond) node()         {}
func (*data) node()         {}
func (*output) node()       {}
func (*ifStmt) node()       {}
func (*forStmt) node()      {}
func (*setStmt) node()      {}
func (*setBlock) node()     {}
func (*macroStmt) node()    {}
func (*callStmt) node()     {}
func (*filterBlock) node()  {}
func (*scope) node()        {}
func (*breakStmt) node()    {}
func (*continueStmt) node() {}
