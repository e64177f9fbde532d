# Runs the sync for Windows Task Scheduler: log in logs\sync_athletes.log, the script's exit code. Options
# are passed on. Windows PowerShell 5.1 or later.
#
#   powershell.exe -NoProfile -ExecutionPolicy Bypass -File python\scripts\run_sync_athletes.ps1

# Not the caller's, with which an exit code that is not 0 may become an exception.
$ErrorActionPreference = 'Continue'
$PSNativeCommandUseErrorActionPreference = $false

$project = Split-Path -Parent (Split-Path -Parent $PSScriptRoot)
$python = Join-Path $project '.venv\Scripts\python.exe'
$script = Join-Path $PSScriptRoot 'sync_athletes_from_app.py'
$logs = Join-Path $project 'logs'
$log = Join-Path $logs 'sync_athletes.log'
[void][IO.Directory]::CreateDirectory($logs)

$code, $problem = 1, $null
try {
    & $python $script --log-file $log @args
    $code = $LASTEXITCODE
    if ($code -notin 0..4) { $problem = "ended with $code, which is none of the sync's exit codes" }
} catch { $problem = 'does not start: ' + ($_.Exception.Message -replace '\s+', ' ') }

if ($problem) {
    $now = [DateTime]::UtcNow.ToString('s') + 'Z'
    Add-Content -LiteralPath $log -Encoding UTF8 "$now ERROR wrapper: $python $problem. Next: step 4 of python\docs\windows.md"
}
exit $code
