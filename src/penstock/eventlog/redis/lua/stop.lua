-- Asks a stream's producer to stop; whether it had not ended. ARGV: id

local stream = base .. ':stream:' .. ARGV[1]
if settle(ARGV[1]) then
  return 0
end
redis.call('HSET', stream, 'stop', '1')
tell(redis.call('HGET', stream, 'lease'), 'stop', ARGV[1])
return 1
