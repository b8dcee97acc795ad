-- Has streams that run kept for so many ms from now on. ARGV: ms, and their ids

for at = 2, #ARGV do
  local id = ARGV[at]
  local stream = base .. ':stream:' .. id
  local known = redis.call('HMGET', stream, 'owner', 'key', 'reason')
  if known[1] and not known[3] then
    redis.call('PEXPIRE', stream, ARGV[1])
    redis.call('PEXPIRE', base .. ':log:' .. id, ARGV[1])
    if known[2] then
      redis.call('PEXPIRE', pointer(known[1], known[2]), ARGV[1])
    end
  end
end
