#!/bin/bash
# make of a small C project: the second run does nothing, a touched file is built anew
. "$(dirname "$0")/_lib.sh"
cd "$D"
objects=
for i in $(seq 12); do
  echo "int f$i(void) { return $i; }" >"f$i.c"
  objects="$objects f$i.o"
done
{ for i in $(seq 12); do echo "int f$i(void);"; done; echo '#include <stdio.h>'; echo 'int main(void) { printf("%d\n", f1() + f12()); return 0; }'; } >main.c
printf 'prog: main.o libf.a\n\t$(CC) -o $@ main.o libf.a\nlibf.a:%s\n\tar rcs $@ $^\n%%.o: %%.c\n\t$(CC) -O -c -o $@ $<\n' "$objects" >Makefile
make -s -j 2
[ "$(./prog)" = 13 ] || die "prog says $(./prog)"
make -q || die "the second run would do something: $(make -n)"
sleep 1
echo 'int f12(void) { return 30; }' >f12.c
make -s
[ "$(./prog)" = 31 ] || die "prog says $(./prog)"
settle
cd "$O"
make -q || die "in the other mount it would do something: $(make -n)"
[ "$(./prog)" = 31 ] || die "in the other mount prog says $(./prog)"
cd /
echo "ok $N"
