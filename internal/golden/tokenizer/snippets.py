"""Small templates for models/tokenizer/internal/jinja, rendered with the
environment that transformers builds. Writes testdata/golden.json.gz there.

    python snippets.py
"""

import gzip
import json
import pathlib

import jinja2
import transformers
from transformers.utils.chat_template_utils import _cached_compile_jinja_template as compile_template

CONTEXT = {
    "s": "Hello, World", "e": "", "u": "žluťoučký Kůň ß İ ΟΔΟΣ", "ws": "  \t two  words \n", "q": "it's \"q\" \\ \n\t\x01é",
    "n": 7, "neg": -7, "f": 2.5, "big": 12345678901, "z": 0, "t": True, "no": False, "nil": None,
    "l": [3, 1, 2], "w": ["b", "A", "c", "a"], "el": [], "mix": [1, "a", None, True, 2.0, [1, 2], {"k": "v"}],
    "d": {"b": 1, "a": 2, "items": [9], "C": None}, "ed": {},
    "p": [{"name": "Zoe", "age": 30, "x": {"y": 1}}, {"name": "adam", "age": 5, "x": {"y": 3}}, {"name": "Eve", "age": 30, "x": {"y": 2}}],
    "messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}],
}

EXPRESSIONS = r"""
1 + 2 * 3 - 4
2 ** 3 ** 2
-2 ** 2
7 // 2, -7 // 2, 7 // -2, -7 % 3, 7 % -3, 7.5 // 2, -7.5 % 2
7 / 2, 6 / 3, 1 / 3
1e3, 1.5e-7, 1e16, 123456789012345678.0, 0.1 + 0.2, 1.0, 1e22
1_000, 0x1F, 0b101, 0o17
n / z
1 + 'a'
'a' + 1
'a' * 3, 3 * 'ab', [1] * 2
[1] + [2], (1,) + (2,)
true + true, true * 3
'a' ~ 1 ~ none ~ true ~ 1.5 ~ [1, 'x'] ~ missing
1 < 2 < 3, 1 < 2 > 3, 1 == 1.0, true == 1, 'a' < 'b', [1, 2] < [1, 3], (1, 'a') == (1, 'a')
1 < 'a'
none < 1
'ell' in s, 'x' not in s, 1 in l, 'a' in d, 'z' in d, none in mix, 2 in (1, 2)
1 in s
1 in n
'a' in missing
missing in l
not true, not 0, not '', not not 1
1 and 2, 0 and 2, 1 or 2, 0 or '', none or 'x', missing or 'y'
'a' if t, 'a' if no, 'a' if no else 'b', 1 if no else 2 if no else 3
[1, 'a', none, true, 1.0, (1,), (), {}, {'a': [1]}]
(1, 2), (1), (1,), ()
{'a': 1, 'b': {'c': none}, 1: 2, 'it\'s': "x"}
{'a': 1, 'a': 2}
{1: 'a', true: 'b', 1.0: 'c'}
mix
d
q
[q, u, '\x7f', '\u200b', '😀', "'", '"', '\'"']
'\n\t\\\'\"\x41\u00e9\101\q\/'
"a" 'b' "c"
l[0], l[-1], l[5], l[1:], l[:-1], l[::-1], l[::2], l[5:], l[-2:], l[2:0:-1], l[-100:100]
s[0], s[-1], s[7:], s[::-1], s[1:4:2], s[99], u[1], u[-3:]
l['a'], l.x, n.x, none.x, s.foo
nil.x.y
missing.x
missing['x']
missing.x.y
missing
missing|length, missing|list, missing|join, missing|upper
missing()
n()
d.keys(), d.values(), d.items()|first, d.items()[0], d.items() is sequence, d.keys()|length, 'a' in d.keys(), d.keys() is iterable
d.keys()|tojson
d.a, d['a'], d.zz, d['items'], d.items(), d.get('a'), d.get('q'), d.get('q', 5), d.keys()|list, d.values()|list
d.items is defined, d['keys'] is defined, ed['items'] is callable, d.pop is defined
d.update({'x': 1})
l.append(4)
l.index(1), l.count(3), l.index(9)
messages[0].role, messages[-1]['content'], messages[0]['nope'] is defined, (messages|first).role
s.upper(), s.lower(), s.title(), s.capitalize(), u.upper(), u.lower(), u.title(), u.capitalize(), 'ab cd-ef'.title()
ws.strip(), ws.lstrip(), ws.rstrip(), 'xxaxx'.strip('x'), 'abcba'.lstrip('ab'), '<<a>>'.rstrip('>')
s.split(), s.split(','), s.split('l'), s.split('l', 1), ws.split(), 'a,b,c'.rsplit(',', 1), 'a b  c '.split(' '), ''.split(), ''.split(','), ' a b c '.split(none, 1)
s.split('')
s.startswith('He'), s.endswith('d'), s.startswith(('x', 'H')), s.find('l'), s.rfind('l'), s.find('zz'), s.index('W'), s.count('l'), u.find('K')
s.replace('l', 'L'), s.replace('l', 'L', 1), 'aaa'.replace('', '-'), s.replace('zz', 'y')
'-'.join(['a', 'b']), ','.join(w), ''.join([])
'-'.join([1])
'12'.isdigit(), 'a1'.isalnum(), 'ab'.isalpha(), ' '.isspace(), 'AB'.isupper(), 'ab'.islower(), ''.isdigit(), 'Ab'.isupper(), 'é'.isascii(), '½'.isnumeric()
'a\nb\r\nc'.splitlines(), ''.splitlines(), 'a\n'.splitlines()
'ab'.removeprefix('a'), 'ab'.removesuffix('b'), 'ab'.removeprefix('x'), '7'.zfill(3), '-7'.zfill(4), 'ab'.ljust(4) ~ '|', 'ab'.rjust(4, '.'), 'ab'.center(5, '*'), 'abc'.center(6, '*')
s.nope()
s|length, l|length, d|length, u|length, s|count
n|length
s|upper, s|lower, s|title, s|capitalize, 'foo-bar (baz) [q]'|title, u|title
ws|trim, 'xxaxx'|trim('x'), 5|trim
l|first, l|last, el|first, s|first, s|last, d|first
el|first is defined, (el|last) ~ 'x'
l|sort, w|sort, w|sort(case_sensitive=true), l|sort(reverse=true), p|sort(attribute='age')|map(attribute='name')|list, p|sort(attribute='x.y', reverse=true)|map(attribute='name')|list
mix|sort
l|reverse|list, s|reverse, l|min, l|max, w|min, w|max, l|sum, p|sum(attribute='age'), el|sum, el|max, p|map(attribute='x.y')|sum
w|unique|list, [1, 1.0, true, 2]|unique|list, p|unique(attribute='age')|map(attribute='name')|list
l|join, l|join(', '), p|join('; ', attribute='name'), [none, true, 1.5]|join('-'), s|join('.'), d|join(',')
missing|default('x'), nil|default('x'), nil|default('x', true), ''|d('y', true), 0|default(5, boolean=true), missing|default
'a-b-c'|replace('-', '+'), 'a-b-c'|replace('-', '+', 1), 5|replace(5, 6)
-5|abs, -2.5|abs, 'x'|int, '42'|int, ' 7 '|int, '3.9'|int, 3.9|int, 'x'|int(9), '1f'|int(base=16), true|int, none|int, '2.5'|float, 'x'|float, 3|float
2.5|round, 3.5|round, 2.567|round(2), 2.1|round(0, 'ceil'), 2.9|round(method='floor'), 5|round, 1234.5|round(-2), -2.5|round
[1, 2, 3, 4]|select('odd')|list, [1, 2, 3, 4]|reject('odd')|list, [0, 1, '', 'a', none]|select|list, [1, 5, 9]|select('gt', 3)|list, [1, 2, 3]|select('in', [1, 3])|list
p|selectattr('age', 'eq', 30)|map(attribute='name')|list, p|rejectattr('age', 'equalto', 30)|map(attribute='name')|list, messages|selectattr('role', '==', 'user')|list, p|selectattr('zz')|list, p|selectattr('zz', 'undefined')|list|length, p|selectattr('x.y', '>=', 2)|map(attribute='x.y')|list
w|map('upper')|list, [' a ']|map('trim')|list, p|map(attribute='zz', default='-')|list, ['a-b']|map('replace', '-', '_')|list, [[1, 2], [3]]|map('length')|list, [[1, 2], [3]]|map('join', '+')|list
d|dictsort, d|dictsort(true), {'a': 2, 'b': 1}|dictsort(by='value'), {'a': 2, 'b': 1}|dictsort(reverse=true)
d|items|list, ed|items|list, missing|items|list
d|list, s|list, (1, 2)|list, n|string ~ 'x', d|string
n|list
'<'|safe ~ '<' ~ 1, '<' ~ ('<'|safe), '<'|safe + '<', '<' + '<'|safe, '<'|e ~ '&', ('a'|safe) == 'a', 'a' == ('a'|safe), 'a'|safe in 'abc', '<'|safe is string, '<a'|safe|upper, ' <'|safe|trim, '<'|safe|string ~ '<', '<'|safe|tojson, ['<'|safe]|join('<'), ('<'|safe)|replace('<', '>'), ('ab'|safe)|length
'<a>'|e
'x<y'|safe + 1
l|map('string')|tojson
l|map('string')|length
(l|map('string'))[0] is defined, l|map('string') is sequence, l|map('string') is iterable, l|map('string')|first, l|select('odd')|list|length, (el|select)|list, (el|map('upper')) and 1, l|reverse|first, l|reverse|join, d|items|first
l|map('string')|last
l|reverse|last
l|reverse|tojson
none|map('upper')|list, none|selectattr('x')|list, 0|select|list, none|rejectattr('a', 'b')|list
none|unique|list
'{}-{}'.format(1, 'a'), '{1}{0}'.format('a', 'b'), '{a}{{}}'.format(a=none), 'x'.format()
'{}'.format()
'{'.format(1)
n|nosuch if no else 1, n is nosuch if no else 2
'a\nb\n\nc'|indent, 'a\nb'|indent(2), 'a\nb'|indent(2, true), 'a\n\nb'|indent(2, blank=true), 'a\nb'|indent('> ', first=true), 'a\n'|indent ~ '|', ''|indent(first=true) ~ '|'
'a b  c'|wordcount, '%s-%d-%05.1f-%r-%%'|format('x', 5, 2.345, 'y'), 'a %s' % 'b', '%s %s' % (1, [2]), '%5s|%-5s|' % ('a', 'b'), '%x' % 255
'%s' % (1, 2)
'<a href="x">&\'</a>'|e, s|safe, '<'|escape
mix|tojson, d|tojson, q|tojson, u|tojson, s|tojson, n|tojson, f|tojson, nil|tojson, [1e20, 1.0, 0.1]|tojson, (1, 2)|tojson, {1: 2, none: 3, true: 4}|tojson, []|tojson, {}|tojson
d|tojson(indent=2), mix|tojson(indent=4), []|tojson(indent=2), {}|tojson(indent=2), d|tojson(sort_keys=true), {'b': 1, 'a': 'é😀'}|tojson(ensure_ascii=true), d|tojson(separators=(',', ':')), [1, {'a': []}]|tojson(indent=0)
missing|tojson
p|map(attribute='x')|list|tojson, '</script><b>&\x7f\u2028'|tojson
d|attr('a') is defined, n|nosuchfilter
n is nosuchtest
n is defined, missing is defined, missing is undefined, nil is none, nil is not none, missing is none, d.zz is defined, d.C is none
s is string, n is string, n is number, f is number, t is number, n is integer, f is integer, f is float, t is boolean, t is integer, t is true, no is false, 1 is true
d is mapping, l is mapping, l is sequence, s is sequence, d is sequence, n is sequence, l is iterable, s is iterable, n is iterable, missing is iterable, range(2) is iterable, (1,) is sequence
7 is odd, 8 is even, 9 is divisibleby 3, 9 is divisibleby(2), 1 is eq 1, 1 is ne 2, 1 is lt 2, 2 is ge 2, 2 is gt(1), 'a' is in ['a'], 1 is sameas 1, 1 is sameas true, none is sameas none
'abc' is lower, 'ABC' is upper, 'Abc' is lower, '1' is lower, '' is upper, range is callable, s is callable, 'upper' is filter, 'odd' is test
not n is odd, not (n is odd), n is not odd, n is odd and t, n is odd or no, 1 + 1 is eq 2, -5|abs + 1
n is odd is even
range(5)|list, range(2, 5)|list, range(10, 0, -3)|list, range(0)|list, range(3)|length, range(3)[1], range(3)|sum
range(1000000)|length
range(1, 2, 0)
dict(a=1, b=2), dict({'x': 1}, y=2), dict([('a', 1)]), dict()
namespace(a=1).a
raise_exception('no ' ~ n)
strftime_now('%Y') is string
loop is defined
[x for x in l]
l if l else 'x', (l if no) is defined
p[0].x.y, p[0]['x']['y'], p[-1].name[0], p.0.name, messages[1:][0].role
'a' == 'a' and 'b' != 'a', 1 == '1', none == false, missing == missing2, missing == none, missing != none, [] == (), {} == {}
s.upper().lower().split(',')[0].strip()[1:-1]|upper ~ '!'
(s ~ 'x')|length + 1, s ~ 'x'|upper, (1 + 2)|string ~ 3, 1 + 2 ~ 3
l|length > 2 and l|length < 4, n > 5 == true, 'x' if n > 5 and not no else 'y'
u|lower == u.lower(), 'ß'|upper, 'ǆ'|capitalize
'é' < 'z', 'a' < 'B', '' < 'a', '😀' > '\uffff'
1.0 // 0.3, 2 ** -1, 2 ** 0.5, 0 ** 0, 10 ** 18, 2.0 ** 3
10 ** 30
9223372036854775807 + 1
1e400, -1e400
7.0 is integer, 1e3 is float, 1e3|int, 123456.789e3
[none]|first, [[]]|first|first is defined
'{}'.format(1)
'%(a)s' % {'a': 1}
''.__class__
l.__len__()
{'a': 1}.a, {'a': {'b': 2}}['a']['b'], [1, 2][1], (1, 2)[0], 'abc'[1]
[1,2,], {'a': 1,}, (1, 2,), range(1,)|list
"a{{b}}c{% x %}d{# e #}"
'a}}b', "%}", '#}'
{'a': {'b': {}}}, {}
"""

TEMPLATES = r"""
{% if t %}yes{% else %}no{% endif %}
{% if no %}a{% elif n == 7 %}b{% else %}c{% endif %}
{% for x in l %}{{ x }}{% if not loop.last %}, {% endif %}{% endfor %}
{% for x in l %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.previtem }}{{ loop.nextitem }}{{ loop.depth }}{{ loop.depth0 }};{% endfor %}
{% for x in el %}a{% else %}empty{% endfor %}
{% for x in l if x > 1 %}{{ loop.index }}:{{ x }} of {{ loop.length }} {% else %}none{% endfor %}
{% for x in l if x > 9 %}a{% else %}none{% endfor %}
{% for a, b in d.items() %}{{ a }}={{ b }};{% endfor %}
{% for a, b in [(1, 2), [3, 4]] %}{{ a }}{{ b }}{% endfor %}
{% for (a, b) in [(1, 2)] %}{{ a }}{{ b }}{% endfor %}
{% for a, b in [(1, 2, 3)] %}{{ a }}{% endfor %}
{% for k in d %}{{ k }}{% endfor %}{% for c in 'aé😀' %}[{{ c }}]{% endfor %}{% for x in missing %}x{% endfor %}
{% for x in n %}{% endfor %}
{% for x in nil %}{% endfor %}
{% for x in l %}{% for y in l %}{{ loop.index }}{{ x }}{{ y }} {% endfor %}{{ loop.index }}|{% endfor %}
{% for x in l %}{% if x == 1 %}{% continue %}{% endif %}{{ x }}{% endfor %}
{% for x in l %}{% if x == 1 %}{% break %}{% endif %}{{ x }}{% endfor %}
{% for x in l %}{% for y in l %}{% if y == 1 %}{% break %}{% endif %}{{ x }}{{ y }} {% endfor %}{% endfor %}
{% for x in [1, 2, 3, 4] %}{{ loop.cycle('a', 'b') }}{% endfor %}{% for x in [1, 1, 2] %}{{ loop.changed(x) }}{% endfor %}
{% for x in l recursive %}{{ x }}{% endfor %}
{% set g = l|map('string') %}{{ g|list }}{{ g|list }}{% if g %}true{% endif %}
{% set g = l|select('odd') %}{% for x in g %}{{ x }}{{ loop.length }}{{ loop.last }}{% endfor %}{% for x in g %}again{% else %}empty{% endfor %}
{% set g = l|select('odd') %}{{ 3 in g }}{{ g|list }}
{% if no %}{{ n|nosuch }}{% endif %}ok{% if no %}{{ n is nosuch }}{% endif %}
{% break %}
{% set x = 1 %}{% for i in l %}{% set x = x + i %}{{ x }} {% endfor %}{{ x }}
{% set ns = namespace(x=1) %}{% for i in l %}{% set ns.x = ns.x + i %}{% endfor %}{{ ns.x }}{{ ns.y is defined }}
{% set ns = namespace() %}{% set ns.a = 1 %}{{ ns.a }}{{ ns.zz }}|
{% set ns = namespace({'a': 5}, b=2) %}{{ ns.a + ns.b }}
{% set d2 = {} %}{% set d2.a = 1 %}
{% set ns = namespace(_x=1) %}
{% set a, b = 1, 2 %}{{ a }}{{ b }}
{% set a, b = [1, 2, 3] %}
{% set a = 1, 2 %}{{ a }}
{% set x %}a{{ n }}b{% endset %}[{{ x }}]
{% set x | upper | replace('A', '_') %}abca{% endset %}{{ x }}
{% if t %}{% set y = 5 %}{% endif %}{{ y }}
{% if no %}{% set y = 5 %}{% endif %}{{ y }}|{{ y is defined }}
{% for i in [1] %}{% if t %}{% set y = i %}{% endif %}{{ y }}{% endfor %}{{ y is defined }}
{% for n in l %}{{ n }}{% endfor %}{{ n }}
{% macro m(a, b=2, c='x') %}{{ a }}{{ b }}{{ c }}|{% endmacro %}{{ m(1) }}{{ m(1, 3) }}{{ m(1, c=5) }}{{ m(a=7) }}{{ m() }}
{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, 2) }}
{% macro m(a) %}{{ a }}{% endmacro %}{{ m(b=2) }}
{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, a=2) }}
{% macro m() %}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(1, 2, x=3) }}
{% macro m(a, b=a) %}{{ a }}{{ b }}{% endmacro %}{{ m(1) }}
{% macro m(a) %}{{ a }}{{ n }}{% set n = 1 %}{{ n }}{% endmacro %}{{ m(3) }}{{ n }}
{% macro m(x) %}{% if x > 0 %}{{ x }}{{ m(x - 1) }}{% endif %}{% endmacro %}{{ m(5) }}
{% set g = 1 %}{% macro m() %}{{ g }}{% endmacro %}{% set g = 2 %}{{ m() }}
{% macro outer() %}{% macro inner(x) %}<{{ x }}>{% endmacro %}{{ inner(1) }}{% endmacro %}{{ outer() }}
{{ m() }}{% macro m() %}x{% endmacro %}
{% macro m() %}[{{ caller() }}]{% endmacro %}{% call m() %}body {{ n }}{% endcall %}
{% macro m(l) %}{% for x in l %}{{ caller(x) }};{% endfor %}{% endmacro %}{% call(y) m([1, 2]) %}<{{ y }}>{% endcall %}
{% macro m() %}x{% endmacro %}{% call m() %}body{% endcall %}
{% macro m() %}{{ caller is defined }}{% endmacro %}{{ m() }}
{% macro m() %}a{% endmacro %}{{ m()|upper }}{{ m() ~ 'b' }}{{ m() is string }}{{ m is callable }}{{ m()|length }}
{% filter upper %}abc {{ s }}{% endfilter %}
{% filter replace('a', 'b')|upper %}banana{% endfilter %}
{% with x = 1, y = 2 %}{{ x + y }}{% endwith %}{{ x is defined }}
{% with %}{% set z = 3 %}{{ z }}{% endwith %}{{ z }}
{% with n = 1, m = n %}{{ m }}{% endwith %}
{% generation %}abc{% set v = 1 %}{% endgeneration %}{{ v is defined }}
{% raw %}{{ not }} {% this %}{% endraw %}
a {%- raw -%} {{ x }} {%- endraw -%} b
a  {%- raw %}  {{ x }}  {% endraw -%}  b
{% raw %}
{{ x }}
{% endraw %}
after
a{# comment #}b{#- x -#} c {#+ y +#} d
  {# alone #}
next
{# unclosed
{{ 'a' -}}   b   {{- 'c' }}
{{ 'a' -}} 
  b
{%- if t -%}  x  {%- endif -%}  y
  {% if t %}
    one
  {% endif %}
two
  {%+ if t %}x{% endif +%}
y
  {%- if t %}
x
  {%- endif %}
y
{% if t -%}

   x

{%- endif %}

z
a {% if t %} b {% endif %} c
	{% if t %}tab{% endif %}
x  {% if t %}y{% endif %}  z
{{ 'a' }}
{{ 'b' }}
{% for x in l %}
  - {{ x }}
{% endfor %}
end
{% for x in l -%}
  - {{ x }}
{% endfor -%}
end
line1

{% set x = 1 %}

line2
{{ n }}  
   {{ n }}
  {% set x = 1 %}  {% set y = 2 %}
z{{ x }}{{ y }}
{%- set x = 1 %}
  {%- set y = 2 %}
z
a
  {#- c #}
b
x {% if t %}{# c #}
y{% endif %}
{% extends 'x' %}
{% include 'x' %}
{% import 'x' as y %}
{% block x %}a{% endblock %}
{% nosuch %}
{% if t %}
{% endif %}{% endif %}
{% if %}{% endif %}
{{ }}
{{ 1 + }}
{{ (1 }}
{{ 1) }}
{{ 'abc }}
{{ a b }}
{{ l[ }}
{{ l[] }}
{{ n! }}
{{ n ; }}
{% for in l %}{% endfor %}
{% for x of l %}{% endfor %}
{% set = 1 %}
{% set true = 1 %}
{% macro %}{% endmacro %}
{% macro m(a=1, b) %}{% endmacro %}
{% if t %}a{% elif %}b{% endif %}
{% else %}
{{ f(a=1, 2) }}
{{ {'a' 1} }}
{{ {1, 2} }}
{% for x in l %}{{ x }}{% endfor
{{ n
text with } and { and % and # and }} and %} and #}
{{ '{{' }}{{ '%}' }}{{ "}}" }}
{{'a'}}{{"b"}}{%if t%}c{%endif%}{%-for x in l-%}{{x}}{%-endfor-%}
{{ messages | map(attribute='role') | join(',') }}{% for m in messages if m.role != 'system' %}{{ m['content'] + '\n' }}{% endfor %}
{% for m in messages[::-1] %}{{ m.role }}{{ (messages|length - 1) - loop.index0 }}{% endfor %}
{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}odd{% else %}ok{% endif %}{% endfor %}
{% set c = '<|x|>' + messages[0]['content'] | trim + '<|y|>' %}{{ c }}
{% set r = messages[1:] %}{% set first = messages[0].content if messages[0].role == 'system' else '' %}{{ first }}{{ r|length }}
{% for m in messages %}{% set content = m.content %}{% if loop.index0 == 0 %}{% set content = 'BOS' + content %}{% endif %}{{ content }}{% endfor %}
{% if messages[0].role == 'system' %}{% set sys = messages[0].content %}{% set rest = messages[1:] %}{% else %}{% set sys = '' %}{% set rest = messages %}{% endif %}{{ sys }}{{ rest|length }}
{% set x = namespace(l=[]) %}{% for i in l %}{% set x.l = x.l + [i] %}{% endfor %}{{ x.l }}
{% if d is mapping and 'a' in d and d.a == 2 %}ok{% endif %}{% if not (d.b and d.C) %}ok{% endif %}
{% for x in range(3) %}{% for k, v in {'a': x}.items() %}{{ k }}{{ v }}{{ loop.first }}{% endfor %}{% endfor %}
{% set d3 = dict(d, **{'q': 1}) %}{{ d3 }}
{% set l2 = [*l] %}
{{ '' if n else 'x' }}{{- ' a ' -}}{{ none }}{{ true }}
{% set mode = 'a' if n > 3 else 'b' -%}
{{ mode }}
"""


def split_templates(text):
    """One template a line, except where lines belong together: these are joined here."""
    lines = text.strip("\n").split("\n")
    out, i = [], 0
    multi = {
        "{% raw %}": 4, "  {# alone #}": 2, "{# unclosed": 1, "{{ 'a' -}} ": 2, "  {% if t %}": 4, "  {%+ if t %}x{% endif +%}": 2, "  {%- if t %}": 4,
        "{% if t -%}": 6, "{{ 'a' }}": 2, "{% for x in l %}": 4, "{% for x in l -%}": 4, "line1": 5, "{{ n }}  ": 2, "  {% set x = 1 %}  {% set y = 2 %}": 2,
        "{%- set x = 1 %}": 3, "a": 3, "x {% if t %}{# c #}": 2, "{% if t %}": 2, "{% set mode = 'a' if n > 3 else 'b' -%}": 2,
    }
    while i < len(lines):
        n = multi.get(lines[i], 1)
        out.append("\n".join(lines[i : i + n]))
        i += n
    return out


def render(source):
    try:
        return {"source": source, "text": compile_template(source).render(**CONTEXT)}
    except Exception as e:
        return {"source": source, "error": f"{type(e).__name__}: {e}"}


def main():
    cases = []
    for line in EXPRESSIONS.strip("\n").split("\n"):
        cases.append(render("{{ " + line + " }}"))
        parts = split_commas(line)
        if len(parts) > 1:
            cases += [render("{{ " + p + " }}") for p in parts]
    for t in split_templates(TEMPLATES):
        cases.append(render(t))
        cases.append(render(t + "\n"))
        cases.append(render("x\n" + t.replace("\n", "\r\n") + "\n\nend\n"))
    path = pathlib.Path(__file__).resolve().parents[3] / "models/tokenizer/internal/jinja/testdata/golden.json.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    value = {"versions": {"jinja2": jinja2.__version__, "transformers": transformers.__version__}, "context": CONTEXT, "cases": cases}
    path.write_bytes(gzip.compress(json.dumps(value, ensure_ascii=False).encode(), 9, mtime=0))
    print(len(cases), "templates,", sum("error" in c for c in cases), "of them fail,", path.stat().st_size, "bytes")


def split_commas(line):
    """The parts of a line at commas outside of brackets and strings."""
    parts, depth, quote, start, i = [], 0, "", 0, 0
    while i < len(line):
        c = line[i]
        if quote:
            if c == "\\":
                i += 1
            elif c == quote:
                quote = ""
        elif c in "'\"":
            quote = c
        elif c in "([{":
            depth += 1
        elif c in ")]}":
            depth -= 1
        elif c == "," and depth == 0:
            parts.append(line[start:i].strip())
            start = i + 1
        i += 1
    return parts + [line[start:].strip()]


main()
