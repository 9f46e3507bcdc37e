-- Makes a chunk of pieces of others. ARGV: its name, seconds to live, then body, number, first and
-- last byte of each piece. Gives the length.
local name, whole = root .. 'c:' .. ARGV[2], {}
for at = 4, #ARGV, 4 do
  table.insert(whole, redis.call('GETRANGE', chunk(ARGV[at], ARGV[at + 1]), ARGV[at + 2], ARGV[at + 3]))
end
whole = table.concat(whole)
redis.call('SET', name, whole, 'EX', ARGV[3])
return { 'ok', #whole }
