-- Tells producers who reads their streams in one process.
--
-- ARGV: the process's token, the number of its report, ms to keep what is read, ms to keep what runs, and for each
-- stream: id, readers, the cursor of the furthest. One that has ended is kept at least so long from now on.
--
-- The lease holds the number of the latest report: one that comes late is not taken.

local token, number, read, keep = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local lease = base .. ':lease:' .. token
local latest = redis.call('GET', lease)

if not latest or tonumber(latest) >= number then
  return
end
redis.call('SET', lease, ARGV[2], 'KEEPTTL')
for at = 5, #ARGV, 3 do
  local id, readers, cursor = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  local stream = base .. ':stream:' .. id
  local known = redis.call('HMGET', stream, 'lease', 'reason')
  if known[1] and known[2] then
    if readers ~= '0' and redis.call('PTTL', stream) < read then
      redis.call('PEXPIRE', stream, read)
      redis.call('PEXPIRE', base .. ':log:' .. id, read)
      redis.call('ZADD', base .. ':ended', now() + read, id)
    end
  elseif known[1] then
    if readers == '0' then
      redis.call('HDEL', base .. ':readers:' .. id, token)
    else
      redis.call('HSET', base .. ':readers:' .. id, token, readers .. ' ' .. cursor)
      redis.call('PEXPIRE', base .. ':readers:' .. id, keep)
    end
    if known[1] ~= token then
      tell(known[1], 'readers', id, 'token', token, 'count', readers, 'cursor', cursor)
    end
  end
end
