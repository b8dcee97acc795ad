-- Sheds streams that have ended. ARGV: "records" or "all", and their ids

for at = 2, #ARGV do
  local id = ARGV[at]
  local stream = base .. ':stream:' .. id
  local known = redis.call('HMGET', stream, 'reason', 'last', 'offset', 'owner', 'key')
  if ARGV[1] == 'all' then
    redis.call('ZREM', base .. ':ended', id) -- one that was forgotten by now too
  end
  if known[1] and ARGV[1] == 'records' then
    redis.call('DEL', base .. ':log:' .. id)
    redis.call('HSET', stream, 'dropped', known[2], 'dropped_offset', known[3])
  elseif known[1] then
    redis.call('DEL', stream, base .. ':log:' .. id)
    if known[5] and redis.call('GET', pointer(known[4], known[5])) == id then
      redis.call('DEL', pointer(known[4], known[5]))
    end
  end
end
